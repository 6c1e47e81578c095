"""mmpretrain's own tools, which do not import this package, on configs that inherit from it."""

import os
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
TOOLS = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
# The line of docs/training.md: mmengine evaluates it before it looks for the file.
CONFIG = """
_base_ = __import__('mmcfmask') and 'mmcfmask::shapes/ft.py'
train_cfg = dict(max_epochs=1)
train_dataloader = dict(batch_size=32, dataset=dict(size=64))
val_dataloader = dict(dataset=dict(size=32))
"""


@pytest.fixture
def run(tmp_path):
    """Run a tool of mmpretrain on the config, in a process of its own that ends well; gives its output."""
    (tmp_path / 'my_config.py').write_text(CONFIG)

    def run(tool, *arguments):
        result = subprocess.run(
            [sys.executable, TOOLS / tool, 'my_config.py', *arguments],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_print_config(run):
    """It shows the config that this package's tools run."""
    shown, own = Config.fromstring(run('misc/print_config.py'), '.py'), Config.fromfile(ROOT / 'configs/shapes/ft.py')
    assert shown.train_dataloader.dataset.size == 64
    assert {key for key in {*shown, *own} if shown.get(key) != own.get(key)} == {
        'train_cfg',
        'train_dataloader',
        'val_dataloader',
    }


@pytest.mark.slow
def test_browse_dataset(run, tmp_path):
    run('visualization/browse_dataset.py', '--output-dir', 'shown', '--not-show', '-n', '2', '--mode', 'original')
    assert len(list((tmp_path / 'shown').iterdir())) == 2


@pytest.mark.slow
def test_train(run, tmp_path):
    run('train.py', '--work-dir', 'run')
    assert (tmp_path / 'run' / 'best.pth').is_file()
