"""tools/pack.py: a folder becomes shards; a wrong folder is one line."""

from forks import run_script
from shards import SIZES, make_folders
from trees import class_counts

from mmcfmask.datasets import FolderDataset


def pack(*arguments):
    return run_script('tools/pack.py', *arguments)


def test_folder_becomes_shards(tmp_path):
    done = pack(make_folders(tmp_path / 'folders'), tmp_path / 'out', '--shard-size', 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('18 images are in 1 shards in ') and class_counts(
        FolderDataset(str(tmp_path / 'out'))
    ) == list(SIZES.values())
    again = pack(tmp_path / 'folders', tmp_path / 'folders')
    assert again.returncode == 1 and again.stderr.count('\n') == 1 and 'is not empty (cat, dog, emu)' in again.stderr
