"""Arguments that the scripts in tools/ share. They are parsed before the package is imported."""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mmcfmask_cli
from mmcfmask.models.inference.relevance_crop import CROP_SCALE
from mmcfmask_cli import add_cfg_options, add_relevance_crop, add_renamed, add_run_arguments, count, file_name, seed

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.mark.parametrize('tool', sorted({path.name for path in TOOLS.glob('*.py')} - {'launch.py'}))
def test_help_imports_no_torch(tool):
    command = [sys.executable, '-X', 'importtime', str(TOOLS / tool), '--help']
    done = subprocess.run(command, cwd=TOOLS.parent, capture_output=True, text=True, timeout=60)
    modules = {line.rsplit('|', 1)[-1].strip().partition('.')[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith(f'usage: {tool}')
    assert 'argparse' in modules and not modules & {'torch', 'mmengine', 'mmcfmask', 'numpy'}


@pytest.mark.parametrize(
    'tool, arguments, expected',
    [
        ('report.py', 'a --out r b', dict(runs=['a', 'b'], out='r')),
        ('soup.py', 'config a --out s b', dict(config='config', checkpoints=['a', 'b'], out='s')),
        ('wise_ft.py', 'config --save 0.5 a', dict(config='config', checkpoint='a', save=0.5)),
        ('test.py', 'config --out m.json a', dict(config='config', checkpoint='a', out='m.json')),
    ],
)
def test_files_may_follow_options(tool, arguments, expected, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [tool, *arguments.split()])
    args = vars(runpy.run_path(str(TOOLS / tool))['parse_args']())
    assert {name: args[name] for name in expected} == expected


def test_run_arguments():
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    args = parser.parse_args([])
    assert vars(args) == dict(work_dir=None, amp=False, cfg_options=[], launcher=None, local_rank=0)
    assert parser.parse_args(['--local-rank', '1']).local_rank == parser.parse_args(['--local_rank=1']).local_rank == 1


def test_config_options_accumulate():
    parser = argparse.ArgumentParser()
    add_cfg_options(parser, 'of every method')
    args = parser.parse_args(['--cfg-options', 'a=1', 'b=c d', '--cfg-options', 'a=2'])
    assert args.cfg_options == ['a=1', 'b=c d', 'a=2'] and parser.parse_args([]).cfg_options == []
    assert 'of every method' in parser.format_help()


def test_relevance_crop():
    parser = argparse.ArgumentParser()
    add_relevance_crop(parser, 'predict with a crop')
    assert mmcfmask_cli.CROP_SCALE == CROP_SCALE
    given = [parser.parse_args(arguments.split()).relevance_crop for arguments in ('', '--relevance-crop')]
    assert given == [None, CROP_SCALE] and parser.parse_args(['--relevance-crop', '0.5']).relevance_crop == 0.5


@pytest.mark.parametrize('arguments', [['--gate'], ['--gate', '3'], ['--gate=3'], ['x', '--second-look', '0.5']])
def test_an_old_option_names_the_new_one(arguments, capsys):
    parser = argparse.ArgumentParser(prog='test.py')
    parser.add_argument('config', nargs='?')
    parser.add_argument('--knn-gate', action='store_true')
    add_renamed(parser, '--gate', '--knn-gate')
    add_relevance_crop(parser, '')
    with pytest.raises(SystemExit) as error:
        parser.parse_args(arguments)
    old, new = ('--gate', '--knn-gate') if 'gate' in arguments[0] else ('--second-look', '--relevance-crop')
    assert error.value.code == 2
    assert capsys.readouterr().err == f'test.py: {old} is called {new} since mmcfmask 0.2.0\n'
    assert old not in parser.format_help()


@pytest.mark.parametrize(
    'read, right, wrong, message',
    [
        (seed, {'0': 0, '4294967295': 2**32 - 1}, ['-1', '4294967296', '1.5', 'x', ''], 'whole number from 0 to'),
        (count, {'1': 1, '12': 12}, ['0', '-1', '1.5', 'x', '', '1e3', '9999999999', '²'], 'whole number from 1'),
        (file_name, {'a b': 'a b'}, [''], 'name is empty'),
    ],
)
def test_types(read, right, wrong, message):
    assert {text: read(text) for text in right} == right
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            read(text)
