"""What --track tensorboard shows."""

import subprocess
import sys
import time
import urllib.request

import pytest
from processes import free_port

from mmcfmask.engine.run_training import run_training

OPTIONS = [
    'train_dataloader.dataset.size=640',
    'val_dataloader.dataset.size=200',
    'default_hooks.logger.interval=1',
    'train_cfg.max_epochs=3',
]


@pytest.fixture
def tensorboard(tmp_path):
    """The address of a TensorBoard of two short runs."""
    pytest.importorskip('tensorboard', reason="tensorboard is not installed: pip install -e '.[track]'")
    for name in ('ft', 'cfmask'):
        work_dir = tmp_path / 'work_dirs' / name
        run_training(f'configs/shapes/{name}.py', OPTIONS, work_dir=work_dir, track=['tensorboard'])
    port = free_port()
    command = [sys.executable, '-m', 'tensorboard.main', '--logdir', tmp_path / 'work_dirs', '--port', port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        address = f'http://127.0.0.1:{port}'
        for _ in range(600):
            try:
                runs = urllib.request.urlopen(f'{address}/data/runs').read().decode()
            except OSError:
                runs = ''
            if runs.count('vis_data') == 2:
                break
            time.sleep(0.2)
        yield address
        server.terminate()


@pytest.mark.slow
def test_screenshot(tensorboard, browser, screenshots):
    page = browser.new_page(viewport=dict(width=1280, height=860))
    page.set_default_timeout(60_000)
    page.goto(f'{tensorboard}/?tagFilter=loss|counterfactual_images#timeseries')
    for tag in ('loss_cls', 'loss_distill', 'counterfactual_images'):
        page.get_by_text(tag).first.wait_for()
    page.locator('.settings-button').click()  # closes them
    page.wait_for_timeout(3000)
    page.screenshot(path=screenshots / 'tensorboard.png')
    page.close()
