"""The page without a browser: how it starts, and what it needs."""

import importlib
import re
import runpy
import socket
import sys
from pathlib import Path

import pytest

from mmcfmask.engine.config import load_config
from mmcfmask.errors import MissingPackageError, UserError
from mmcfmask.explorer.session import Explorer


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


@pytest.fixture(scope='module')
def page_module():
    pytest.importorskip('gradio', reason="gradio is not installed: pip install -e '.[dev]'")
    return importlib.import_module('mmcfmask.explorer.page')


@pytest.fixture(scope='module')
def no_images(tmp_path_factory):
    """An explorer none of whose data sets are on this machine."""
    cfg = load_config('configs/shapes/zeroshot.py')
    gone = dict(type='FolderDataset', data_root=str(tmp_path_factory.mktemp('data') / 'gone'), pipeline=[])
    for loader in cfg.test_dataloader.values():
        loader.dataset = gone
    return Explorer(cfg)


def test_no_data_set_can_be_read(page_module, no_images):
    page = page_module.Page(no_images)
    name, number, shown, pictures, choice, message, stages, answers, *_ = page.start()
    assert (name, number, shown, pictures, choice, stages, answers) == (None, 0, [], [], None, '', '')
    assert 'gone' in message and 'Drop an image, or choose another data set.' in message
    for results in (page.change(None), page.draw_again(None)):
        assert results[0] is None and 'Choose an image.' in results[1]
    assert 'gone' in page.show_set('a')[0] and 'choose a data set' in page.show_set(None)[0]
    assert 'nowhere.png cannot be read' in page.open_file(None, 'Image', 'nowhere.png')[1]


def test_addresses_that_cannot_be_listened_on(page_module, no_images):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'cannot listen on --host 127.0.0.1 --port {port}: choose another one'):
            page_module.launch(no_images, port=port)
    assert page_module.find_port('127.0.0.1', port) == port and page_module.find_port('0.0.0.0') in page_module.PORTS
    for host in ('', '::1'):
        with pytest.raises(UserError, match=f"--host '{host}': give a name or an IPv4 address"):
            page_module.find_port(host)
    with pytest.raises(UserError, match='cannot listen on --host 192.0.2.1: choose another one'):
        page_module.launch(no_images, '192.0.2.1')  # no address of this machine
    with pytest.raises(UserError, match='--port 99999'):
        page_module.find_port('127.0.0.1', 99999)
