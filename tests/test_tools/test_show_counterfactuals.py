"""The command line of tools/show_counterfactuals.py."""

from pathlib import Path

import pytest
from forks import run_script

from mmcfmask.counterfactual import FILLS, MASKS

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / 'configs' / 'shapes' / 'cfmask.py')


def run(*arguments, cwd=ROOT):
    return run_script(ROOT / 'tools' / 'show_counterfactuals.py', SHAPES, *arguments, cwd=cwd)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'give either images'),
        (['a.png', '--split', 'test'], 'give either images'),
        (['--split', 'test', '--labels', 'star'], '--labels is for image files'),
        (['--split', 'test', '--all', '--fill', 'multi'], '--all shows every'),
        (['--split', 'test', '--relevance-crop', '--all'], '--relevance-crop masks no patches'),
        (['--split', 'test', '--second-look', '0.5'], '--second-look is called --relevance-crop since mmcfmask 0.2.0'),
        (['--split', 'test', '--out', 'a.jpg'], 'must end in .png'),
        (['--split', 'test', '--num', '0'], "--num: '0' is not a whole number from 1"),
        (['--split', 'test', '--mask', 'border'], 'invalid choice'),
    ],
)
def test_wrong_usage(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr


def test_masks_and_fills_are_those_of_the_package():
    shown = run('--help').stdout
    assert f'--mask {{{",".join(MASKS)}}}' in shown and f'--fill {{{",".join(FILLS)}}}' in shown


def test_picture(tmp_path):
    options = ['train_dataloader.dataset.size=4', 'model.head.class_weights=None', 'model.backbone.pretrained=None']
    done = run('--split', 'train', '--num', 2, '--pdf', '--cfg-options', *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '2 images, object mask, single fill, value 0.3: ' in done.stdout
    assert 'Picture: counterfactuals.png, counterfactuals.pdf' in done.stdout
    assert all((tmp_path / f'counterfactuals.{suffix}').stat().st_size > 1000 for suffix in ('png', 'pdf'))


def test_a_device_that_does_not_exist(tmp_path):
    done = run('--split', 'train', '--device', 'abacus', cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith('--device abacus: ') and done.stderr.count('\n') == 1
