"""The page without a browser: how it starts, and what it needs."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

from mmcfmask.errors import MissingPackageError


@pytest.fixture
def without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delitem(sys.modules, 'mmcfmask.explorer.page', raising=False)


def test_gradio_is_missing(without_gradio, monkeypatch):
    with pytest.raises(MissingPackageError, match=r"needs gradio .*: pip install 'mmcfmask\[explore\]'"):
        importlib.import_module('mmcfmask.explorer.page')
    monkeypatch.setattr(sys, 'argv', ['explore.py', 'nowhere.py'])  # before anything is read
    with pytest.raises(SystemExit, match=r"^mmcfmask explore needs gradio .*pip install 'mmcfmask\[explore\]'$"):
        runpy.run_path('tools/explore.py', run_name='__main__')


def test_only_the_page_imports_gradio():
    """And only its tool imports the page, so that the package does not wait for gradio."""
    for path in Path('mmcfmask').rglob('*.py'):
        code = path.read_text()
        assert ('import gradio' in code) == (path == Path('mmcfmask/explorer/page.py')), path
        assert not re.search(r'explorer\.page import|from \.page import.*\blaunch\b', code), path
