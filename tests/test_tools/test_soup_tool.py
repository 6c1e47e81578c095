from pathlib import Path

import pytest
import torch
from scripts import load_tool

from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import build_model

CLASSES = ['circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie']
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'shapes' / 'ft.py')
OPTIONS = ['--cfg-options', 'val_dataloader.dataset.size=30']


@pytest.fixture(scope='module')
def tool():
    return load_tool('soup')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """The pre-trained mini CLIP, one as good (its logits halved), and one that knows nothing."""
    folder = tmp_path_factory.mktemp('checkpoints')
    state = build_model(load_config(CONFIG, {}).model).state_dict()
    broken = {name: torch.zeros_like(value) for name, value in state.items()}
    for name, weights in {
        'good': state,
        'half': {**state, 'head.fc.weight': state['head.fc.weight'] / 2},
        'broken': broken,
    }.items():
        torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=CLASSES))), folder / f'{name}.pth')
    return {name: str(folder / f'{name}.pth') for name in ('good', 'half', 'broken')}


def test_uniform(tool, checkpoints, tmp_path, capsys):
    tool.main([CONFIG, checkpoints['good'], checkpoints['half'], '--out', str(tmp_path / 'new' / 'soup.pth')])
    soup = torch.load(tmp_path / 'new' / 'soup.pth', weights_only=True)
    good = torch.load(checkpoints['good'], weights_only=True)['state_dict']
    torch.testing.assert_close(soup['state_dict']['head.fc.weight'], 0.75 * good['head.fc.weight'])
    assert soup['meta'] == dict(
        soup='uniform', ingredients=[checkpoints['good'], checkpoints['half']], dataset_meta=dict(classes=CLASSES)
    )
    assert 'uniform soup of 2 models' in capsys.readouterr().out


@pytest.mark.parametrize('ties, members', [('nll', ['good']), ('paper', ['half', 'good']), ('code', ['good'])])
def test_greedy_leaves_out_what_hurts_on_held_out_images(tool, checkpoints, tmp_path, capsys, ties, members):
    """Half the logits are as accurate, but less likely."""
    ingredients = [checkpoints[name] for name in ('broken', 'half', 'good')]
    tool.main([CONFIG, *ingredients, '--out', str(tmp_path / 'soup.pth'), '--greedy', '--ties', ties, *OPTIONS])
    soup = torch.load(tmp_path / 'soup.pth', weights_only=True)
    assert soup['meta']['ingredients'] == [checkpoints[name] for name in members]
    assert f'greedy soup of {len(members)} models' in capsys.readouterr().out and not list(tmp_path.glob('best*'))


@pytest.mark.parametrize('choice', [['save_best=auto'], ['save_best=None'], ['save_best=accuracy/nll', 'rule=less']])
def test_greedy_by_the_metric_of_the_config(tool, checkpoints, tmp_path, choice):
    options = [f'default_hooks.checkpoint.{option}' for option in choice]
    tool.main(
        [
            CONFIG,
            checkpoints['broken'],
            checkpoints['good'],
            '--out',
            str(tmp_path / 'soup.pth'),
            '--greedy',
            *OPTIONS,
            *options,
        ]
    )
    assert torch.load(tmp_path / 'soup.pth', weights_only=True)['meta']['ingredients'] == [checkpoints['good']]


def test_classes_stand_in_one_order(tool, checkpoints, tmp_path):
    other = torch.load(checkpoints['good'], weights_only=True)
    other['meta']['dataset_meta']['classes'] = CLASSES[::-1]
    torch.save(other, tmp_path / 'other.pth')
    with pytest.raises(
        SystemExit, match=r'other.pth was trained on other classes than .*good.pth, or has them in another order'
    ):
        tool.main([CONFIG, checkpoints['good'], str(tmp_path / 'other.pth'), '--out', str(tmp_path / 'soup.pth')])
    with pytest.raises(
        SystemExit, match="class 0 is 'circle' in the dataset of val_dataloader, but 'bowtie' in the training set"
    ):
        tool.main([CONFIG, str(tmp_path / 'other.pth'), '--greedy', '--out', str(tmp_path / 'soup.pth'), *OPTIONS])
    assert not (tmp_path / 'soup.pth').exists()


def test_clear_errors(tool, checkpoints, tmp_path, capsys):
    torch.save(dict(state_dict={'other': torch.ones(1)}), tmp_path / 'other.pth')
    out = ['--out', str(tmp_path / 'soup.pth')]
    with pytest.raises(SystemExit, match='ingredients 1 and 2 of the soup are not of the same model'):
        tool.main([CONFIG, checkpoints['good'], str(tmp_path / 'other.pth'), *out])
    with pytest.raises(SystemExit, match='Unexpected key'):
        tool.main([CONFIG, str(tmp_path / 'other.pth'), '--greedy', *out, *OPTIONS])
    with pytest.raises(SystemExit, match='no checkpoint'):
        tool.main([CONFIG, str(tmp_path / 'gone.pth'), *out])
    with pytest.raises(SystemExit):
        tool.main([CONFIG, checkpoints['good'], checkpoints['good'], *out])
    assert 'named twice' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='no val_dataloader'):
        tool.main([CONFIG.replace('ft.py', 'zeroshot.py'), checkpoints['good'], '--greedy', *out])
