import signal

# A process that was started to ignore it, by nohup or in the background, passes that on to those
# that tests start and interrupt; a handler is not passed on.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--write-table",
        action="store_true",
        help="tests/test_networks.py: write docs/networks.md from what was found",
    )
