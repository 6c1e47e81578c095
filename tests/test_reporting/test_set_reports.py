"""What was found of ImageNet and its shifts: the table, and tools/check_data.py."""

import dataclasses
import json
from pathlib import Path

import pytest
import trees
from forks import run_script
from rich.console import Console

from mmcfmask.datasets import checks
from mmcfmask.datasets.checks import check_sets
from mmcfmask.datasets.layouts import SETS
from mmcfmask.reporting import all_complete, show_set_reports

ROOT = Path(__file__).parents[2]


def show(*args, **kwargs):
    """Prints the table; returns whether all sets are complete."""
    reports = check_sets(*args, **kwargs)
    show_set_reports(reports, Console())
    return all_complete(reports)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    wnids = checks.FOLDERS['imagenet-a'][:20]
    monkeypatch.setitem(SETS, 'imagenet-a', dataclasses.replace(SETS['imagenet-a'], images=20, num_classes=20))
    monkeypatch.setitem(checks.FOLDERS, 'imagenet-a', wnids)
    trees.make_tree(tmp_path / 'imagenet-a', wnids, trees.OWN)
    return tmp_path


def test_complete(root, capsys):
    assert show(root)  # missing sets are no error
    out = capsys.readouterr().out
    table = out.partition('\n\n')[0].splitlines()
    rows = {line.split()[0]: line for line in table[2:]}
    assert table[0].split() == ['set', 'images', 'published', 'classes', 'read', 'status'] and len(rows) == 8
    assert f'imagenet-a: in {root}/imagenet-a' in out.splitlines()
    assert '20 of 20' in rows['imagenet-a'] and rows['imagenet-a'].rstrip().endswith(' complete')
    assert all(row.rstrip().endswith(' missing') for name, row in rows.items() if name != 'imagenet-a')
    assert 'imagenet-r: ImageNet-R was not found: looked for imagenet-r in' in out and SETS['imagenet-r'].source in out


@pytest.mark.parametrize('columns', [80, 50])
def test_nothing_is_cut_where_lines_are_short(root, monkeypatch, capsys, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    folder = root / 'a long name' / 'of a folder' / ('with many letters' * 4)
    folder.mkdir(parents=True)
    (root / 'imagenet-a').rename(folder / 'imagenet-a')
    assert show(folder, list(SETS))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith('set ')
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
    assert not show(root / 'photos')
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if 'class folders' in line or 'classes' in line.partition(':')[2]]
    assert said == [
        f'imagenet-r, imagenet-a, imagenet-sketch: {root}/photos holds 30 class folders of ImageNet, but matches none '
        'of these sets as published: name the set with --sets to see what is missing'
    ]


def test_incomplete(root, capsys):
    (root / 'imagenet-a/n01498041/n01498041_a.jpg').unlink()
    assert not show(root, ['imagenet-a', 'imagenet-r'])
    assert 'imagenet-a: 1 classes have no images: n01498041' in capsys.readouterr().out


def test_command(tmp_path):
    trees.make_tree(tmp_path / 'imagenet-a', checks.FOLDERS['imagenet-a'][:20], trees.OWN)
    done = run_script('tools/check_data.py', tmp_path, '--sets', 'imagenet-a', 'imagenet-r', '--json', '--all')
    a, r = json.loads(done.stdout)
    assert done.returncode == 1 and not done.stderr  # no progress without a terminal
    assert (a['name'], a['status'], a['classes'], a['published_images']) == ('imagenet-a', 'wrong', 20, 7500)
    assert a['images'] == a['decoded'] and (r['status'], r['folder']) == ('missing', None)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere'], 'the folder nowhere does not exist\n'),
        (['.', '--sets', 'imagenet-q'], 'unknown set imagenet-q: choose from'),
    ],
)
def test_mistakes(arguments, message):
    done = run_script('tools/check_data.py', *arguments)
    assert done.returncode == 1 and done.stderr.startswith(message) and done.stderr.count('\n') == 1


def test_nothing_is_there(tmp_path):
    assert not show(tmp_path, ['imagenet-r'])
