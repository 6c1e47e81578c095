"""A headless Chromium, driven by Playwright: `apt-get install chromium`, and the package of the extra `dev`."""

import os
import shutil
from pathlib import Path

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
SCREENSHOTS = 'MMCFMASK_SCREENSHOTS'  # a folder: the tests write the screenshots of the docs there


@pytest.fixture(scope='session')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason="playwright is not installed: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f'no browser is installed ({", ".join(BROWSERS)}): apt-get install chromium')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file, or an address of this machine. The test fails if the page logs an error, or asks another host for
    anything; a file, if it logs or asks for anything at all."""
    problems, contexts = [], []

    def open_page(path, width=1280, height=900, scheme='light', context=None):
        if context is None:  # else one with a warm cache
            context = browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
            contexts.append(context)
        address = path if str(path).startswith('http') else Path(path).as_uri()
        context.set_default_timeout(60_000)  # the machine may be busy
        page = context.new_page()
        served = address.startswith('http')
        page.on('console', lambda said: None if served and said.type != 'error' else problems.append(said.text))
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.on('request', lambda asked: problems.append(asked.url[:100]) if foreign(asked.url, address) else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def foreign(url, address):
    """Whether a request is for anything but the page itself."""
    if address.startswith('http'):
        return not url.startswith(('data:', 'blob:', address))
    return not url.startswith(('data:', 'blob:')) and url.split('#')[0] != address


@pytest.fixture
def screenshots(tmp_path):
    """The folder for screenshots."""
    folder = Path(os.environ.get(SCREENSHOTS) or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
