"""The console script, which finds tools without importing the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmcfmask_cli
from mmcfmask import __version__

ROOT = Path(__file__).parents[1]


def run(*arguments, before=''):
    """``mmcfmask ARGUMENTS…`` in a process of its own, after the statements ``before``."""
    code = f'import sys; {before}\nimport mmcfmask_cli; sys.exit(mmcfmask_cli.main())'
    return subprocess.run(
        [sys.executable, '-X', 'importtime', '-c', code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def imported(result):
    """The top-level modules that a process of :func:`run` imported."""
    lines = [line for line in result.stderr.splitlines() if line.startswith('import time:')]
    return {line.rsplit('|', 1)[1].strip().partition('.')[0] for line in lines}


def messages(result):
    """What a process of :func:`run` wrote to stderr."""
    return [line for line in result.stderr.splitlines() if not line.startswith('import time:')]


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """A package folder whose tools/train.py shows its arguments and ends with exit code 3."""
    tool = tmp_path / '.mim' / 'tools' / 'train.py'
    tool.parent.mkdir(parents=True)
    tool.write_text('import sys\nif __name__ == "__main__":\n    print(sys.argv)\n    sys.exit(3)\n')
    monkeypatch.setattr(mmcfmask_cli, 'package_folder', lambda: tmp_path)
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    return tmp_path


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_help_lists_every_command_and_imports_no_torch(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    shown = [line.split()[0] for line in result.stdout.splitlines() if line.startswith('  ')]
    assert shown == list(mmcfmask_cli.COMMANDS)
    assert 'difflib' in imported(result) and not imported(result) & {'torch', 'mmengine', 'mmcfmask'}


@pytest.mark.parametrize('command', ['train', 'test', 'study'])
def test_help_of_a_command_imports_no_torch(command):
    """tests/test_tools asks the same of every script."""
    result = run(command, '--help')
    assert result.returncode == 0 and result.stdout.startswith(f'usage: mmcfmask {command} ')
    assert 'argparse' in imported(result) and not imported(result) & {'torch', 'mmengine', 'mmcfmask'}


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_help_may_be_cut_off(unbuffered):
    """As by ``mmcfmask --help | head -1``, whether or not a reader waits."""
    for reader in ('head -1', 'true'):
        result = subprocess.run(
            ['bash', '-c', f'set -o pipefail; "{sys.executable}" -m mmcfmask_cli --help | {reader}'],
            cwd=ROOT,
            env=dict(os.environ, PYTHONUNBUFFERED=unbuffered),
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stderr) == (0, '')


def test_every_tool_is_a_command():
    assert sorted(script for script, _ in mmcfmask_cli.COMMANDS.values()) == sorted(
        path.name
        for path in (ROOT / 'tools').glob('*.py')
        if path.name != 'launch.py'  # of dist_train.sh
    )


def test_a_tool_gets_its_arguments_and_gives_the_exit_code(tools, capsys):
    with pytest.raises(SystemExit) as end:
        mmcfmask_cli.main(['train', 'config.py', '--seed', '1'])
    assert end.value.code == 3
    assert capsys.readouterr().out == "['mmcfmask train', 'config.py', '--seed', '1']\n"


def test_an_error_of_a_tool_is_not_hidden(tools):
    (tools / '.mim' / 'tools' / 'train.py').write_text('import no_such_module')
    with pytest.raises(ModuleNotFoundError, match='no_such_module'):
        mmcfmask_cli.main(['train'])


@pytest.mark.parametrize(
    'command, hint', [('trian', 'did you mean train?'), ('xyz', '`mmcfmask --help` lists the commands')]
)
def test_an_unknown_command_is_one_line(command, hint, capsys):
    assert mmcfmask_cli.main([command]) == 2
    assert capsys.readouterr().err == f'mmcfmask: there is no command {command!r}; {hint}\n'


def test_version(capsys):
    assert mmcfmask_cli.main(['--version']) == 0
    assert capsys.readouterr().out == f'mmcfmask {__version__}\n'


def test_without_mmcv_a_command_ends_in_one_line():
    result = run('train', 'config.py', before='sys.modules["mmcv"] = None')
    assert result.returncode == 1
    (line,) = messages(result)
    assert line.startswith('mmcfmask: mmcfmask needs mmcv') and 'mmcfmask[lite]' in line and 'mim install mmcv' in line
    assert 'torch' not in imported(result)
