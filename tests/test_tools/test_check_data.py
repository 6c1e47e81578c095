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
    table = out.partition('\n\n')[0].splitlines()
    rows = {line.split()[0]: line for line in table[2:]}
    assert table[0].split() == ['set', 'images', 'published', 'classes', 'read', 'status'] and len(rows) == 8
    assert f'imagenet-a: in {root}/imagenet-a' in out.splitlines()
    assert '20 of 20' in rows['imagenet-a'] and rows['imagenet-a'].rstrip().endswith(' complete')
    assert all(row.rstrip().endswith(' missing') for name, row in rows.items() if name != 'imagenet-a')
    assert 'imagenet-r: ImageNet-R was not found: looked for imagenet-r in' in out and SETS['imagenet-r'].source in out


@pytest.mark.parametrize('columns', [80, 50])
def test_nothing_is_cut_where_lines_are_short(root, monkeypatch, capfd, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    folder = root / 'a long name' / 'of a folder' / ('with many letters' * 4)
    folder.mkdir(parents=True)
    (root / 'imagenet-a').rename(folder / 'imagenet-a')
    assert check_data.main([str(folder), '--sets', *SETS]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert (
        lines[0].startswith('set ') and not err.strip('\n') and '\n' not in err
    )  # no progress where there is no terminal
    assert [line.split()[0] for line in lines[2 : 2 + len(SETS)]] == list(SETS)
    assert f'imagenet-a: in {folder}/imagenet-a' in lines
    if columns == 80:
        assert (
            '…' not in out
            and max(map(len, lines[: 2 + len(SETS)])) <= 80
            and ' 20 of 20 ' in out
            and ' complete' in out
        )


def test_a_folder_that_may_be_any_set_is_spoken_of_once(root, capsys):
    trees.make_tree(root / 'photos', checks.IMAGENET_WNIDS[:30], trees.OWN)
    assert check_data.main([str(root / 'photos')]) == 1
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if 'class folders' in line or 'classes' in line.partition(':')[2]]
    assert said == [
        f'imagenet-r, imagenet-a, imagenet-sketch: {root}/photos holds 30 class folders of ImageNet, but is none of '
        'these sets as published: to see what it lacks of one, name that with --sets'
    ]


def test_incomplete_and_json(root, capsys):
    (root / 'imagenet-a/n01498041/n01498041_a.jpg').unlink()
    assert check_data.main([str(root), '--sets', 'imagenet-a', 'imagenet-r', '--json', '--all']) == 1
    a, r = json.loads(capsys.readouterr().out)
    assert (a['name'], a['status'], a['images'], a['published_images'], a['decoded']) == (
        'imagenet-a',
        'wrong',
        19,
        20,
        19,
    )
    assert a['problems'] == ['1 classes have no images: n01498041']
    assert (r['status'], r['folder']) == ('missing', None)


def test_nothing_is_there(tmp_path, capsys):
    assert check_data.main([str(tmp_path), '--sets', 'imagenet-r']) == 1
    with pytest.raises(SystemExit, match='the folder .*nowhere does not exist'):
        check_data.main([str(tmp_path / 'nowhere')])
    with pytest.raises(SystemExit):
        check_data.main([str(tmp_path), '--sets', 'imagenet-q'])
    assert "'imagenet-q' (choose from" in capsys.readouterr().err
