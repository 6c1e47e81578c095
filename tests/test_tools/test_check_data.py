"""tools/check_data.py: table, JSON and exit codes."""
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import trees

from mmcfmask.datasets import checks
from mmcfmask.datasets.layouts import SETS

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import check_data


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    wnids = checks.FOLDERS['imagenet-a'][:20]
    monkeypatch.setitem(SETS, 'imagenet-a', dataclasses.replace(SETS['imagenet-a'], images=20, num_classes=20))
    monkeypatch.setitem(checks.FOLDERS, 'imagenet-a', wnids)
    trees.make_tree(tmp_path / 'imagenet-a', wnids, trees.OWN)
    return tmp_path


def test_complete(root, capsys):
    assert check_data.main([str(root)]) == 0  # what is missing is no error
    out = capsys.readouterr().out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith('│')}
    assert len(rows) == 8 and '20 of 20' in rows['imagenet-a'] and ' complete ' in rows['imagenet-a']
    assert all(' missing ' in row for name, row in rows.items() if name != 'imagenet-a')
    assert 'imagenet-r: ImageNet-R is not there: looked for imagenet-r in' in out and SETS['imagenet-r'].source in out


def test_incomplete_and_json(root, capsys):
    (root / 'imagenet-a/n01498041/n01498041_a.jpg').unlink()
    assert check_data.main([str(root), '--sets', 'imagenet-a', 'imagenet-r', '--json', '--all']) == 1
    a, r = json.loads(capsys.readouterr().out)
    assert (a['name'], a['status'], a['images'], a['published_images'], a['decoded']) == ('imagenet-a', 'wrong', 19, 20, 19)
    assert a['problems'] == ['1 classes have no images: n01498041']
    assert (r['status'], r['folder']) == ('missing', None)


def test_nothing_is_there(tmp_path, capsys):
    assert check_data.main([str(tmp_path), '--sets', 'imagenet-r']) == 1
    with pytest.raises(SystemExit, match='there is no folder .*nowhere'):
        check_data.main([str(tmp_path / 'nowhere')])
    with pytest.raises(SystemExit):
        check_data.main([str(tmp_path), '--sets', 'imagenet-q'])
    assert "'imagenet-q' (choose from" in capsys.readouterr().err
