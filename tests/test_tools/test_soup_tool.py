from pathlib import Path

import pytest
import torch

from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_soup import run_soup
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import ConfigError, MissingFileError

CLASSES = ['circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie']
ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'shapes' / 'ft.py')
# Images whose outlines the pretrained model knows.
OPTIONS = ['val_dataloader.dataset.size=30', 'val_dataloader.dataset.split=pretrain']


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """The pretrained mini CLIP, one as accurate (a tenth of its logits), and one that knows nothing."""
    folder = tmp_path_factory.mktemp('checkpoints')
    state = build_model(load_config(CONFIG, {}).model).state_dict()
    broken = {name: torch.zeros_like(value) for name, value in state.items()}
    for name, weights in {
        'good': {**state, 'head.fc.weight': 0.7 * state['head.fc.weight']},  # about as sure as it is right
        'vague': {**state, 'head.fc.weight': 0.07 * state['head.fc.weight']},
        'broken': broken,
    }.items():
        torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=CLASSES))), folder / f'{name}.pth')
    return {name: str(folder / f'{name}.pth') for name in ('good', 'vague', 'broken')}


def test_uniform(checkpoints, tmp_path, capsys):
    run_soup(CONFIG, [checkpoints['good'], checkpoints['vague']], tmp_path / 'new' / 'soup.pth', show=True)
    soup = torch.load(tmp_path / 'new' / 'soup.pth', weights_only=True)
    good = torch.load(checkpoints['good'], weights_only=True)['state_dict']
    torch.testing.assert_close(soup['state_dict']['head.fc.weight'], 0.55 * good['head.fc.weight'])
    assert soup['meta'] == dict(
        soup='uniform', ingredients=[checkpoints['good'], checkpoints['vague']], dataset_meta=dict(classes=CLASSES)
    )
    assert 'uniform soup of 2 models' in capsys.readouterr().out


def test_model_stock(checkpoints, tmp_path, capsys):
    """The head has a scale of 0.7 and 0.07 in the two models: one direction, so t = 1. All else did not move."""
    run_soup(CONFIG, [checkpoints['good'], checkpoints['vague']], tmp_path / 'stock.pth', stock=True, show=True)
    stock = torch.load(tmp_path / 'stock.pth', weights_only=True)
    good = torch.load(checkpoints['good'], weights_only=True)['state_dict']
    torch.testing.assert_close(stock['state_dict'].pop('head.fc.weight'), 0.55 * good.pop('head.fc.weight'))
    assert stock['meta']['soup'] == 'stock' and 'Model Stock of 2 models' in capsys.readouterr().out
    torch.testing.assert_close(stock['state_dict'], good)
    with pytest.raises(ConfigError, match='at least two models'):
        run_soup(CONFIG, [checkpoints['good']], tmp_path / 'stock.pth', stock=True)
    with pytest.raises(ConfigError, match='leave out --greedy or --stock'):
        run_soup(CONFIG, [checkpoints['good']], tmp_path / 'stock.pth', stock=True, greedy=True)


@pytest.mark.parametrize('ties, members', [('nll', ['good']), ('paper', ['vague', 'good']), ('code', ['good'])])
def test_greedy_leaves_out_what_hurts_on_held_out_images(checkpoints, tmp_path, capsys, ties, members):
    """A tenth of the logits is as accurate, but less likely."""
    ingredients = [checkpoints[name] for name in ('broken', 'vague', 'good')]
    run_soup(CONFIG, ingredients, tmp_path / 'soup.pth', OPTIONS, greedy=True, ties=ties, show=True)
    soup = torch.load(tmp_path / 'soup.pth', weights_only=True)
    assert soup['meta']['ingredients'] == [checkpoints[name] for name in members]
    assert f'greedy soup of {len(members)} models' in capsys.readouterr().out and not list(tmp_path.glob('best*'))


@pytest.mark.parametrize('choice', [['save_best=auto'], ['save_best=None'], ['save_best=accuracy/nll', 'rule=less']])
def test_greedy_by_the_metric_of_the_config(checkpoints, tmp_path, choice):
    options = [f'default_hooks.checkpoint.{option}' for option in choice]
    names = [checkpoints['broken'], checkpoints['good']]
    run_soup(CONFIG, names, tmp_path / 'soup.pth', [*OPTIONS, *options], greedy=True)
    assert torch.load(tmp_path / 'soup.pth', weights_only=True)['meta']['ingredients'] == [checkpoints['good']]


def test_classes_stand_in_one_order(checkpoints, tmp_path):
    other = torch.load(checkpoints['good'], weights_only=True)
    other['meta']['dataset_meta']['classes'] = CLASSES[::-1]
    torch.save(other, tmp_path / 'other.pth')
    other = str(tmp_path / 'other.pth')
    with pytest.raises(
        ConfigError, match=r'other.pth was trained on other classes than .*good.pth, or has them in another order'
    ):
        run_soup(CONFIG, [checkpoints['good'], other], tmp_path / 'soup.pth')
    with pytest.raises(
        ConfigError, match="class 0 is 'circle' in the dataset of val_dataloader, but 'bowtie' in the training set"
    ):
        run_soup(CONFIG, [other], tmp_path / 'soup.pth', OPTIONS, greedy=True)
    assert not (tmp_path / 'soup.pth').exists()


def test_clear_errors(checkpoints, tmp_path):
    torch.save(dict(state_dict={'other': torch.ones(1)}), tmp_path / 'other.pth')
    good, other, out = checkpoints['good'], str(tmp_path / 'other.pth'), tmp_path / 'soup.pth'
    with pytest.raises(ConfigError, match='ingredients 1 and 2 of the soup are not of the same model'):
        run_soup(CONFIG, [good, other], out)
    with pytest.raises(ConfigError, match='an ingredient of the soup does not fit the model.* unexpected: other'):
        run_soup(CONFIG, [other], out, OPTIONS, greedy=True)
    with pytest.raises(MissingFileError, match='no checkpoint'):
        run_soup(CONFIG, [str(tmp_path / 'gone.pth')], out)
    with pytest.raises(ConfigError, match='named twice'):
        run_soup(CONFIG, [good, good], out)
    with pytest.raises(ConfigError, match='no val_dataloader'):
        run_soup(CONFIG.replace('ft.py', 'zeroshot.py'), [good], out, greedy=True)
