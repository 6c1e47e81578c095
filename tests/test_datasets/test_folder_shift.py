"""One's own shift: folders matched with the classes of a head."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import trees
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from mmcfmask.datasets import FolderShiftDataset, MissingSetError
from mmcfmask.datasets.imagenet_shifts import IMAGENET_CLASSES, IMAGENET_WNIDS

HEAD = ['Sports car', 'teddy bear', 'great white shark', 'ice-cream', "butcher's knife"]


def build(root, *folders, names=('a.jpg', 'b.jpg'), **kwargs):
    trees.make_tree(root / 'set', folders, names)
    return FolderShiftDataset(str(root / 'set'), **{'head_classes': HEAD, **kwargs})


def labels(dataset):
    """{folder: head indices of its label}."""
    groups = dataset.metainfo['label_groups'] or [(index,) for index in range(len(dataset.metainfo['classes']))]
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    return {item['img_path'].split('/')[-2]: groups[item['gt_label']] for item in items}


def test_names_are_matched_without_case_and_punctuation(tmp_path):
    dataset = build(tmp_path, 'sports_car', 'Great White-Shark', 'butcher_s_knife', 'ICE CREAM')
    assert labels(dataset) == {
        'sports_car': (0,),
        'Great White-Shark': (2,),
        'butcher_s_knife': (4,),
        'ICE CREAM': (3,),
    }
    assert dataset.metainfo['classes'] == ('Sports car', 'great white shark', 'ice-cream', "butcher's knife")
    assert dataset.metainfo['label_groups'] == ((0,), (2,), (3,), (4,))
    assert np.bincount(dataset.get_gt_labels()).tolist() == [2, 2, 2, 2]


def test_all_classes_of_the_head(tmp_path):
    """In the head's order, whatever the order of the folders."""
    dataset = build(tmp_path, *HEAD)
    assert dataset.metainfo['label_groups'] is None and dataset.metainfo['classes'] == tuple(HEAD)
    assert labels(dataset) == {name: (index,) for index, name in enumerate(HEAD)}


def test_imagenet_by_wnid_and_name(tmp_path):
    dataset = build(tmp_path, 'n01440764', 'Great_white_shark', 'acorn', head_classes='imagenet')
    assert labels(dataset) == {'n01440764': (0,), 'Great_white_shark': (2,), 'acorn': (988,)}
    assert dataset.metainfo['classes'] == ('tench', 'great white shark', 'acorn')


def test_a_name_of_two_classes(tmp_path):
    """ImageNet has two classes 'missile': a folder of that name must not quietly be one of them."""
    first, second = (index for index, name in enumerate(IMAGENET_CLASSES) if name == 'missile')
    with pytest.raises(
        ValueError, match=rf'1 folders match several classes of the same name: missile \(classes {first}, {second}\)'
    ):
        build(tmp_path, 'missile', head_classes='imagenet')
    with pytest.raises(
        ValueError, match=f"'missile' is 'missile', the name of the classes {first}, {second}: give the index"
    ):
        FolderShiftDataset(str(tmp_path / 'set'), 'imagenet', folder_map=dict(missile='missile'))
    for value in (second, IMAGENET_WNIDS[second]):
        assert labels(FolderShiftDataset(str(tmp_path / 'set'), 'imagenet', folder_map=dict(missile=value))) == dict(
            missile=(second,)
        )


def test_an_exact_name_comes_first(tmp_path):
    """By punctuation alone, C, C++ and C# would be one class."""
    head = ['C', 'C++', 'C#', 'café']
    dataset = build(
        tmp_path,
        'C++',
        'C#',
        unicodedata.normalize('NFD', 'café'),
        'stew',
        head_classes=head,
        folder_map={unicodedata.normalize('NFD', 'stew'): unicodedata.normalize('NFD', 'café')},
    )
    assert sorted(labels(dataset).values()) == [(1,), (2,), (3,), (3,)] and dataset.metainfo['classes'] == (
        'C++',
        'C#',
        'café',
    )


def test_map(tmp_path):
    """Several folders to a class, a folder to several classes, and folders left out; what is not in the map goes by its
    name."""
    folder_map = dict(
        plush='teddy bear',
        roadster=0,
        wagon='Sports_Car',
        fish=['great white shark', 3],
        misc=None,
        elsewhere='nothing',
    )
    dataset = build(tmp_path, 'plush', 'roadster', 'wagon', 'fish', 'misc', "butcher's knife", folder_map=folder_map)
    assert labels(dataset) == {'plush': (1,), 'roadster': (0,), 'wagon': (0,), 'fish': (2, 3), "butcher's knife": (4,)}
    assert dataset.metainfo['classes'] == (
        'Sports car',
        'teddy bear',
        'great white shark / ice-cream',
        "butcher's knife",
    )
    assert np.bincount(dataset.get_gt_labels()).tolist() == [4, 2, 2, 2]
    part = FolderShiftDataset(str(tmp_path / 'set'), HEAD, folder_map=folder_map, per_class=2)
    assert np.bincount(part.get_gt_labels()).tolist() == [2, 2, 2, 2]


def test_maps_in_files(tmp_path):
    expected = {'my cars': (0,), 'plush': (1,), 'x': (3,)}
    (tmp_path / 'map.json').write_text(json.dumps({'my cars': 'sports car', 'plush': ['teddy bear'], 'x': 3}))
    (tmp_path / 'map.txt').write_bytes(
        b'\xef\xbb\xbfmy cars\tSports car\r\n# folder, class\r\nplush teddy bear\r\n\r\nx 3\r\n'
    )
    (tmp_path / 'classes.txt').write_text('\n'.join(HEAD) + '\n')
    trees.make_tree(tmp_path / 'set', expected)
    for name in ('map.json', 'map.txt'):
        dataset = FolderShiftDataset(
            str(tmp_path / 'set'), str(tmp_path / 'classes.txt'), folder_map=str(tmp_path / name)
        )
        assert labels(dataset) == expected


def test_folders_that_are_indices(tmp_path):
    dataset = build(tmp_path, '10', '2', '999', head_classes='imagenet', folder_map='index')
    assert labels(dataset) == {'10': (10,), '2': (2,), '999': (999,)}
    (tmp_path / 'set/1000').mkdir()
    with pytest.raises(ValueError, match='1 folders are not indices below 1000: 1000'):
        FolderShiftDataset(str(tmp_path / 'set'), 'imagenet', folder_map='index')


@pytest.mark.parametrize(
    'folders, kwargs, message',
    [
        (
            ['sport car', 'x'],
            {},
            r'set: 2 folders match no class of the head: sport car \(near Sports car\), x; rename them, or '
            r'give their classes in folder_map',
        ),
        (['n01440764'], {}, '1 folders match no class of the head: n01440764'),
        (['n0144076'], dict(head_classes='imagenet'), r'n0144076 \(near n01440764\)'),
        (
            ['x'],
            dict(folder_map=dict(x='teddy bar')),
            r"folder_map: 'x' is teddy bar \(near teddy bear\), which is not a class of the head",
        ),
        (['x'], dict(folder_map=dict(x=5)), "folder_map: 'x' is class 5, but the head has 5"),
        (['x'], dict(folder_map=dict(x=None)), 'folder_map ignores all 1 folders'),
        (
            ['x', 'y'],
            dict(folder_map=dict(x=[0, 1], y=[1, 2])),
            'folder_map gives teddy bear to several classes',
        ),
        (['x'], dict(head_classes=[]), 'head_classes is empty'),
        (['x'], dict(folder_map=dict(x=[])), '1 folders match no class of the head: x'),
    ],
)
def test_bad_folders_and_maps(tmp_path, folders, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, *folders, **kwargs)


def test_bad_files(tmp_path):
    for name, text, message in (
        ('a.json', '{', 'a.json is not valid JSON'),
        ('b.json', '[]', 'must hold a JSON object'),
        ('c.txt', '\nplush\n', "c.txt, line 2: 'plush' is not of the form <folder> <class>"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            FolderShiftDataset(str(tmp_path), HEAD, folder_map=str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="folder_map='nowhere.json' is not a dict, 'index' or an existing file"):
        FolderShiftDataset(str(tmp_path), HEAD, folder_map='nowhere.json')
    with pytest.raises(FileNotFoundError, match="head_classes='imagnet' is not 'imagenet', a list or an existing file"):
        FolderShiftDataset(str(tmp_path), 'imagnet')
    with pytest.raises(MissingSetError, match='The folder .*nowhere does not exist'):
        FolderShiftDataset(str(tmp_path / 'nowhere'), HEAD)


def test_from_a_config(tmp_path):
    trees.make_tree(tmp_path / 'toys', ['teddy', 'acorn'])
    (tmp_path / 'config.py').write_text(f"""
_base_ = 'mmcfmask::cfmask_vitb16.py'
toys = dict(type='FolderShiftDataset', data_root='{tmp_path}/toys', head_classes='imagenet',
            folder_map=dict(teddy='teddy bear'), pipeline={{{{_base_.pipeline}}}})
sampler = dict(type='DefaultSampler', shuffle=False)
test_dataloader = dict(toys=dict(batch_size=64, num_workers=4, dataset=toys, sampler=sampler))
test_cfg = dict(shifts=['toys'])
""")
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert 'imagenet' in cfg.test_dataloader and cfg.test_cfg.shifts == ['toys'] and cfg.test_cfg.id_set == 'imagenet'
    dataset = DATASETS.build(cfg.test_dataloader.toys.dataset)
    assert dataset[0]['inputs'].shape == (3, 224, 224) and labels(dataset) == {'teddy': (850,), 'acorn': (988,)}


def documented():
    return re.findall(r'```python\n(.*?)```', (Path(__file__).parents[2] / 'docs/data.md').read_text(), re.DOTALL)


def test_examples_of_the_documentation(tmp_path):
    _, config, folder_map, *_, csv = documented()
    trees.make_tree(tmp_path / 'toys', ['teddy bear', 'plushies', 'clocks', 'crane_2', 'misc'])
    values = {}
    exec(folder_map, values)
    path = tmp_path / 'config.py'
    path.write_text(config.replace('data/toys', str(tmp_path / 'toys')))
    cfg = Config.fromfile(path)
    assert {'imagenet-r', 'toys'} <= set(cfg.test_dataloader) and cfg.test_cfg.shifts == ['imagenet-r', 'toys']
    with pytest.raises(ValueError, match='folders match no class of the head: clocks'):
        DATASETS.build(cfg.test_dataloader.toys.dataset)
    dataset = DATASETS.build({**cfg.test_dataloader.toys.dataset, **{key: values[key] for key in ('folder_map',)}})
    assert labels(dataset) == {'teddy bear': (850,), 'plushies': (850,), 'clocks': (409, 530), 'crane_2': (517,)}

    trees.make_tree(tmp_path / 'faces/images', ['a'])
    (tmp_path / 'faces/attributes.csv').write_text('image,smiling,male,part\na/a.jpg,1,0,2\na/b.jpg,0,1,0\n')
    path.write_text("_base_ = 'mmcfmask::cfmask_vitb16.py'\n" + csv.replace('data/faces', str(tmp_path / 'faces')))
    faces = DATASETS.build(Config.fromfile(path).faces)
    assert len(faces) == 1 and faces[0]['gt_label'] == 1 and list(faces.metainfo['classes']) == ['no', 'yes']
