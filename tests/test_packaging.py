"""The wheel: its files, what it asks pip to install, and its console script."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from modelindex.load_model_index import load
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmcfmask import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A folder with the content of the wheel, built from a copy of what it is made of."""
    folder = tmp_path_factory.mktemp('wheel')
    source, unpacked = folder / 'source', folder / 'unpacked'
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('mmcfmask', 'configs', 'studies', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    build = 'from setuptools import build_meta; build_meta.build_wheel("..")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob('mmcfmask-*.whl')
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    return unpacked


@pytest.fixture
def metadata(wheel):
    return message_from_string((wheel / f'mmcfmask-{__version__}.dist-info' / 'METADATA').read_text())


def test_the_wheel_holds_what_is_read_at_run_time(wheel):
    needed = {
        path.relative_to(ROOT) for path in (ROOT / 'mmcfmask').glob('**/*') if path.is_file() and path.suffix != '.pyc'
    }
    needed |= {Path('mmcfmask/.mim') / path.relative_to(ROOT) for path in (ROOT / 'configs').glob('**/*.py')}
    needed |= {Path('mmcfmask/.mim') / path.relative_to(ROOT) for path in (ROOT / 'tools').glob('*.*')}
    needed |= {Path('mmcfmask/.mim') / path.relative_to(ROOT) for path in (ROOT / 'studies').glob('*.yaml')}
    assert Path('mmcfmask/py.typed') in needed and Path('mmcfmask/.mim/configs/cfmask_vitb16.py') in needed
    assert needed <= {path.relative_to(wheel) for path in wheel.glob('**/*')}


def test_the_wheel_holds_nothing_else(wheel):
    assert {path.name for path in wheel.iterdir()} == {
        'mmcfmask',
        'mmcfmask_cli.py',
        f'mmcfmask-{__version__}.dist-info',
    }


def test_only_an_extra_brings_mmcv(metadata):
    """mmcv and mmcv-lite are the same package under two names: one installed over the other breaks."""
    requirements = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    assert 'torch' in {line.name for line in requirements if line.marker is None}
    mmcv = [line for line in requirements if line.name.startswith('mmcv')]
    assert [line.name for line in mmcv] == ['mmcv-lite']
    assert mmcv[0].marker.evaluate({'extra': 'lite'}) and not mmcv[0].marker.evaluate({'extra': ''})


def test_what_is_imported_is_required(metadata):
    """Or comes with what is required, for the reason given here."""
    given = {
        'imagecorruptions': 'of the extra corruptions, where it is not installed',
        'mmcv': 'the user chooses which',
        'opencv-python': 'of mmcv and mmengine',
        'pydantic-core': 'of pydantic',
        'triton': 'of torch, where there is one',
        'yapf': 'of mmengine, imported ahead of it',
    }
    required = {canonicalize_name(Requirement(line).name) for line in metadata.get_all('Requires-Dist')}
    distributions = packages_distributions()
    for path in [*(ROOT / 'mmcfmask').glob('**/*.py'), *(ROOT / 'tools').glob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for name in {module.partition('.')[0] for module in modules} - sys.stdlib_module_names:
                owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                assert owners & (required | {'mmcfmask', 'mmcfmask-cli', *given}), f'{path} imports {name}'


def test_the_console_script_runs_from_the_wheel(wheel):
    scripts = configparser.ConfigParser()
    scripts.read(wheel / f'mmcfmask-{__version__}.dist-info' / 'entry_points.txt')
    assert dict(scripts['console_scripts']) == {'mmcfmask': 'mmcfmask_cli:main'}
    code = 'import sys, mmcfmask_cli as cli; print(cli.package_folder()); cli.main(["export", "--help"])'
    result = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, PYTHONPATH=str(wheel)),
        cwd=wheel.parent,
        capture_output=True,
        text=True,
    )
    folder, usage = result.stdout.split('\n', 1)
    assert folder == str(wheel / 'mmcfmask') and usage.startswith('usage: mmcfmask export'), result.stderr


def test_configs_and_studies_of_the_package_are_found_from_any_folder(wheel, tmp_path):
    code = 'import mmcfmask_cli as cli; cli.main(["study", "mmcfmask::shapes_weight.yaml", "--list"])'
    environment = dict(os.environ, PYTHONPATH=str(wheel))
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert 'to do' in result.stdout and 'CFMask weight 1' in result.stdout, result.stderr


def test_import_without_mmcv_names_both_ways_to_install_it():
    code = 'import sys; sys.modules["mmcv"] = None; import mmcfmask'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith('ModuleNotFoundError: mmcfmask needs mmcv')
    assert "pip install 'mmcfmask[lite]'" in message and 'mim install mmcv' in message


def test_the_model_index_lists_every_config():
    index = load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    configs = [model.config for model in index.models]
    paths = {path.relative_to(ROOT) for path in (ROOT / 'configs').glob('**/*.py')}
    assert sorted(configs) == sorted(str(path) for path in paths if '_base_' not in path.parts)
    assert len({model.name for model in index.models}) == len(configs)
    assert {model.in_collection for model in index.models} == {collection.name for collection in index.collections}


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_release_has_one_version():
    citation = read_yaml('CITATION.cff')
    assert citation['version'] == __version__
    assert f'\n## [{__version__}] - {citation["date-released"]}\n' in (ROOT / 'CHANGELOG.md').read_text()


def test_pre_commit_runs_the_versions_of_make_lint():
    pinned = dict(
        line.split('==') for line in (ROOT / 'requirements' / 'constraints.txt').read_text().split() if '==' in line
    )
    hooks = {repo['repo'].rsplit('/', 1)[1]: repo['rev'] for repo in read_yaml('.pre-commit-config.yaml')['repos']}
    assert hooks == {'ruff-pre-commit': f'v{pinned["ruff"]}', 'codespell': f'v{pinned["codespell"]}'}


def test_ci_runs_on_every_supported_python(metadata):
    versions = read_yaml('.github/workflows/ci.yml')['jobs']['test']['strategy']['matrix']['python']
    supported = [line.rsplit(' ', 1)[1] for line in metadata.get_all('Classifier') if ':: Python :: 3.' in line]
    assert versions == supported and metadata['Requires-Python'] == f'>={versions[0]}'
