"""What pip is asked to install."""

import runpy
import sysconfig
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]


@pytest.fixture
def metadata(monkeypatch, tmp_path):
    """The arguments of ``setup()`` in an environment where ``packages`` are installed."""

    def read(*packages):
        for package in packages:
            (tmp_path / f'{package}.dist-info').mkdir()
        seen = {}
        monkeypatch.setattr(sysconfig, 'get_paths', lambda: dict(purelib=str(tmp_path)))
        monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: seen.update(kwargs))
        runpy.run_path(str(ROOT / 'setup.py'))
        return seen

    return read


def test_mmcv_lite_does_not_overwrite_a_full_mmcv(metadata):
    """Both are the package ``mmcv``: installed over each other they break."""
    assert any(line.startswith('mmcv-lite') for line in metadata('mmcv_lite-2.2.0')['install_requires'])
    assert not any(line.startswith('mmcv') for line in metadata('mmcv-2.1.0')['install_requires'])


def test_files_that_are_read_at_run_time_are_packaged(metadata):
    patterns = metadata()['package_data']['mmcfmask']
    package = ROOT / 'mmcfmask'
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    read = {path for path in package.glob('**/*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
    assert read and read <= packaged
    assert {ROOT / 'configs' / 'cfmask_vitb16.py'} <= {path.resolve() for path in packaged}
