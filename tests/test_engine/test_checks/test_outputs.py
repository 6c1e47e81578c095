"""Results can be written."""

import pytest

from mmcfmask.engine.checks.outputs import check_out, check_work_dir
from mmcfmask.errors import StorageError


def test_work_dir_must_be_writable(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match='cannot write to the work dir .*file/run'):
        check_work_dir(str(tmp_path / 'file' / 'run'))
    check_work_dir(str(tmp_path / 'new' / 'run'))
    assert list((tmp_path / 'new' / 'run').iterdir()) == []


def test_out_must_be_a_file_that_can_be_written(tmp_path):
    with pytest.raises(StorageError, match="--out '.*' is a folder: give the name of a file"):
        check_out(str(tmp_path))
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match='cannot write to the folder .*file.* choose another with --out'):
        check_out(str(tmp_path / 'file' / 'metrics.json'))
    check_out(str(tmp_path / 'new' / 'metrics.json'))
