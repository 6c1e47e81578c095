"""mmpretrain's own tools, which do not import this package, on configs that inherit from it."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmengine
import mmpretrain
import pytest
from mmengine.config import Config
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TOOLS = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
try:
    SCIKIT_LEARN = Version(version('scikit-learn'))
except PackageNotFoundError:
    SCIKIT_LEARN = Version('0')
# The line of docs/training.md: mmengine evaluates it before it looks for the file.
CONFIG = """
_base_ = __import__('mmcfmask') and 'mmcfmask::shapes/ft.py'
one_test_set = 'r'
train_cfg = dict(max_epochs=1)
train_dataloader = dict(batch_size=32, dataset=dict(size=64))
val_dataloader = dict(dataset=dict(size=32))
test_dataloader = dict(r=dict(dataset=dict(size=40)))
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Run a tool of mmpretrain in a folder of the module, in a process of its own that ends well; gives its output."""
    folder = tmp_path_factory.mktemp('mmpretrain')
    (folder / 'my_config.py').write_text(CONFIG)

    def run(tool, *arguments):
        result = subprocess.run(
            [sys.executable, TOOLS / tool, *map(str, arguments)],
            cwd=folder,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run.folder = folder
    return run


@pytest.fixture(scope='module')
def trained(run):
    """The folder of a run of mmpretrain's train.py, relative to that of the tools."""
    run('train.py', 'my_config.py', '--work-dir', 'run')
    return 'run'


def test_print_config(run):
    """It shows the config that this package's tools run."""
    shown = Config.fromstring(run('misc/print_config.py', 'my_config.py'), '.py')
    own = Config.fromfile(ROOT / 'configs/shapes/ft.py')
    assert shown.train_dataloader.dataset.size == 64 and shown.test_dataloader.dataset.size == 40
    assert {key for key in {*shown, *own} if shown.get(key) != own.get(key)} == {
        'train_cfg',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'test_evaluator',
        'test_cfg',
    }


@pytest.mark.slow
def test_of_a_trained_model(run, trained):
    """train.py, test.py, confusion_matrix.py, eval_metric.py, analyze_results.py, publish_model.py"""
    best = f'{trained}/best.pth'
    shown = run('test.py', 'my_config.py', best, '--out', 'predictions.pkl', '--out-item', 'pred')
    accuracy = float(re.search(r'r/top1: ([\d.]+)', shown)[1])
    run('analysis_tools/confusion_matrix.py', 'my_config.py', best, '--out', 'matrix.pkl', '--show-path', 'matrix.png')
    matrix = mmengine.load(run.folder / 'matrix.pkl')
    assert matrix.sum() == 40 and 100 * matrix.diagonal().sum() / 40 == pytest.approx(accuracy)
    offline = run('analysis_tools/eval_metric.py', 'predictions.pkl', '--metric', 'type=Accuracy')
    assert f"'accuracy/top1': {accuracy}" in offline
    run('analysis_tools/analyze_results.py', 'my_config.py', 'predictions.pkl', '--out-dir', 'analysed', '--topk', 2)
    assert list((run.folder / 'analysed').rglob('*.png'))

    published = re.search(r'pub_\S+\.pth', run('model_converters/publish_model.py', best, 'pub.pth'))[0]
    again = run('test.py', 'my_config.py', published)
    assert float(re.search(r'r/top1: ([\d.]+)', again)[1]) == accuracy


@pytest.mark.slow
def test_logs_schedules_and_flops(run, trained):
    log = next((run.folder / trained).glob('*/vis_data/scalars.json'))
    run('analysis_tools/analyze_logs.py', 'plot_curve', log, '--keys', 'loss', '--out', 'loss.png')
    assert 'iter' in run('analysis_tools/analyze_logs.py', 'cal_train_time', log)
    schedule = ('--not-show', '--save-path', 'schedule.png', '--dataset-size', 2000)
    run('visualization/vis_scheduler.py', 'my_config.py', *schedule)
    assert {'loss.png', 'schedule.png'} <= {path.name for path in run.folder.iterdir()}
    assert 'Flops: 55.' in run('analysis_tools/get_flops.py', 'my_config.py', '--shape', 64)  # without Q Kᵀ and A V


@pytest.mark.slow
@pytest.mark.skipif(
    not Version('1.0') <= SCIKIT_LEARN < Version('1.7'), reason='the tool needs scikit-learn below 1.7 (TSNE(n_iter=…))'
)
def test_tsne(run, trained):
    options = ('--max-num-class', 3, '--max-num-samples', 10, '--perplexity', 5, '--work-dir', 'tsne')
    run('visualization/vis_tsne.py', 'my_config.py', '--checkpoint', f'{trained}/best.pth', *options)
    assert list((run.folder / 'tsne').rglob('feat_-1.png'))


@pytest.mark.slow
def test_browse_dataset(run):
    options = ('--not-show', '-n', 2, '--mode', 'original')
    for phase in ('train', 'test'):
        shown = f'shown_{phase}'
        run('visualization/browse_dataset.py', 'my_config.py', '--output-dir', shown, '--phase', phase, *options)
        assert len(list((run.folder / shown).iterdir())) == 2
