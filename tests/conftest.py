import shutil
import signal

import pytest
from hypothesis import HealthCheck, settings

# A process that was started to ignore it, by nohup or in the background, passes that on to those
# that tests start and interrupt; a handler is not passed on.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--write-table",
        action="store_true",
        help="tests/convert/test_networks.py: write docs/networks.md from what was found",
    )


def pytest_configure(config):
    """How many examples hypothesis draws: fewer where only `make test`'s tests run.

    Fewest where one in many of the parameters is run, for a slow backend.
    """
    for name, count in (("fewest", 8), ("few", 20), ("all", 80)):
        settings.register_profile(
            name,
            max_examples=count,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
    fast = config.option.markexpr == "not thorough"
    every = config.getoption("--every", 1)
    settings.load_profile("fewest" if every > 1 else "few" if fast else "all")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, pages):
    """Opens a file of the module's ``pages``, a folder.

    At the end, nothing must have gone wrong in it or been fetched.
    """
    opened, problems, requests = [], [], []

    def go(name, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(120_000)  # milliseconds; a machine can be busy
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((pages / f"{name}.html").as_uri())
        opened.append((context, page.url))
        return page

    yield go
    for context, _ in opened:
        context.close()
    assert problems == []
    urls = {url for _, url in opened}
    assert [
        r for r in requests if r.partition("#")[0] not in urls and not r.startswith("data:")
    ] == []
