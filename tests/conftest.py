def pytest_addoption(parser):
    parser.addoption(
        "--write-table",
        action="store_true",
        help="tests/test_networks.py: write docs/networks.md from what was found",
    )
