"""The Dockerfile: what it names exists; and its lines, run without Docker, make an environment that works."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from docker import make_script, read_dockerfile, read_ignored
from packaging.specifiers import SpecifierSet
from pages import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

INSTRUCTIONS = read_dockerfile(ROOT / 'Dockerfile')
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# In place of apt-get: packages are looked for, but this machine stays as it is.
APT_GET = """#!/bin/sh
[ "$1" = install ] && command -v {apt} >/dev/null && exec {apt} --simulate "$@"
exit 0
"""


def values(name):
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def make_context(folder):
    """What ``docker build`` sends: the files that .dockerignore names."""
    kept, left_out = read_ignored(ROOT / '.dockerignore')
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_image_has_a_python_that_the_package_supports():
    (image,) = values('FROM')
    (version,) = [value.partition('=')[2] for value in values('ARG') if value.startswith('PYTHON=')]
    assert image == 'python:${PYTHON}-slim'  # Python's official image
    assert version in SpecifierSet(PROJECT['requires-python'])
    assert f'Programming Language :: Python :: {version}' in PROJECT['classifiers']


def test_every_file_that_is_copied_is_in_the_context(tmp_path):
    context = make_context(tmp_path)
    for value in values('COPY'):
        for source in value.split()[:-1]:
            assert (context / source).exists(), source
    needed = {'pyproject.toml', PROJECT['readme'], *PROJECT['license-files'], 'mmcfmask_cli.py', 'model-index.yml'}
    assert needed <= {path.name for path in context.iterdir()}
    for link in (context / 'mmcfmask' / '.mim').iterdir():
        assert link.exists(), link
    assert not list(context.rglob('__pycache__')) and not (context / 'tests').exists()


def test_every_line_is_a_command_of_the_shell(tmp_path):
    script = make_script(INSTRUCTIONS, tmp_path, ROOT, {})
    assert len(values('RUN')) == 3 and all(f'{line}\n' in script for line in values('RUN'))
    subprocess.run(['bash', '-n'], input=script, text=True, check=True)
    for arguments, expected in (({}, 'https://download.pytorch.org/whl/cpu'), (dict(TORCH_INDEX=''), None)):
        lines = make_script(INSTRUCTIONS, tmp_path, ROOT, arguments).splitlines()
        shown = [line.replace('pip install', 'echo') for line in lines if 'TORCH_INDEX' in line]
        found = subprocess.run(['bash', '-euc', '\n'.join(shown)], capture_output=True, text=True, check=True).stdout
        index = f' --extra-index-url {expected}' if expected else ''
        assert found == f'-c requirements/constraints.txt{index} torch torchvision\n'


def test_the_entry_point_is_the_console_script():
    assert [json.loads(value) for value in values('ENTRYPOINT')] == [list(PROJECT['scripts'])]
    assert [json.loads(value) for value in values('CMD')] == [['--help']]


def test_the_docs_say_how_to_build_it():
    text = (ROOT / 'Dockerfile').read_text()
    for command in ('docker build -t mmcfmask .', 'docker build -t mmcfmask --build-arg TORCH_INDEX= .'):
        assert f'{command}\n' in text and command in (ROOT / 'README.md').read_text()


@pytest.mark.slow
def test_a_fresh_environment(tmp_path):
    """The lines of the Dockerfile in a new virtual environment install the wheel, which then trains, tests, reports and
    publishes from an empty folder. torch comes from PyPI, as with ``--build-arg TORCH_INDEX=``."""
    context = tmp_path / 'context'
    context.mkdir()
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    bin = tmp_path / 'venv' / 'bin'
    (bin / 'apt-get').write_text(APT_GET.format(apt=shutil.which('apt-get') or 'apt-get'))
    (bin / 'apt-get').chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    environment.update(PATH=f'{bin}:{environment["PATH"]}', OMP_NUM_THREADS='1')
    script = make_script(INSTRUCTIONS, tmp_path / 'root', make_context(context), dict(TORCH_INDEX=''))
    subprocess.run(['bash', '-c', script], env=environment, check=True)
    empty = tmp_path / 'root' / 'work'
    assert not list(empty.iterdir())

    def mmcfmask(*arguments):
        done = subprocess.run(['mmcfmask', *arguments], env=environment, cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, f'mmcfmask {" ".join(arguments)}: {done.stdout}\n{done.stderr}'
        return done.stdout

    check_installed_package(mmcfmask, empty)
    pip = ['python', '-m', 'pip', 'install', '-c', ROOT / 'requirements' / 'constraints.txt', 'mmcfmask[explore]']
    subprocess.run(pip, env=environment, cwd=empty, check=True)
    explore = ['mmcfmask', 'explore', 'mmcfmask::shapes/cfmask.py', 'run/best.pth']
    with subprocess.Popen(explore, env=environment, cwd=empty, stdout=subprocess.PIPE, text=True) as explorer:
        address = re.search(r'http://127.0.0.1:\d+/', next(line for line in explorer.stdout if 'http://' in line))[0]
        assert 'mmcfmask explorer' in urllib.request.urlopen(address).read().decode()
        explorer.terminate()
    where = 'import mmcfmask; print(mmcfmask.__file__)'
    found = subprocess.run(['python', '-c', where], env=environment, cwd=empty, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(tmp_path / 'venv')


def check_installed_package(mmcfmask, folder):
    """Use what the wheel carries: scripts, configs, weights, studies, and the files of the report page.

    Args:
        mmcfmask: Runs a command in ``folder`` and returns what it printed.
        folder (Path): An empty folder.
    """
    config = 'mmcfmask::shapes/cfmask.py'
    small = [f'test_dataloader.{name}.dataset.size=20' for name in ('test', 'v2')]
    few = ['train_dataloader.dataset.size=128', 'val_dataloader.dataset.size=20', 'train_cfg.max_epochs=1']
    assert 'usage: mmcfmask COMMAND' in mmcfmask('--help')
    mmcfmask('train', config, '--work-dir', 'run', '--cfg-options', *few, *small)
    mmcfmask('test', config, 'run/best.pth', '--shifts', 'v2', '--out', 'run/metrics.json', '--cfg-options', *small)
    mmcfmask('report', 'run', '--out', 'report')
    assert 'plotly' in (folder / 'report' / 'index.html').read_text().lower()
    assert 'to do' in mmcfmask('study', 'mmcfmask::shapes_weight.yaml', '--list')
    mmcfmask('publish', 'run', '--to', 'published')
    mmcfmask('test', 'published', 'published', '--shifts', 'v2', '--out', 'again.json')
    first, second = (json.loads((folder / name).read_text()) for name in ('run/metrics.json', 'again.json'))
    assert first['metrics'] == second['metrics'] and first['method'] == second['method']
