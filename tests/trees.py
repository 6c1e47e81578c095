"""Small copies of ImageNet and its shifts in the layouts that people have: the right folders, one generated image
behind every name."""

import csv
import json
import random
from hashlib import sha256
from pathlib import Path

import mat4py
import numpy as np
import open_clip
from PIL import Image

from mmcfmask.datasets.imagenet_shifts import IMAGENET_WNIDS, read_class_map

ROOT = Path(__file__).parents[1]
OWN = ('{folder}_a.jpg',)  # names for folders of their own
BORDER = (255, 0, 0)
OVERLAP = [1] * 104 + [2] * 6 + [3] * 3  # of ObjectNet's 113 classes: by how many of ImageNet's each is meant


def save_image(path, width=40, height=30, seed=0, border=0):
    """Noise, perhaps with a red border as ObjectNet's images have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if border:
        framed = np.empty_like(pixels)
        framed[:] = BORDER
        framed[border:-border, border:-border] = pixels[border:-border, border:-border]
        pixels = framed
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_small_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)


def make_tree(root, folders, names=('a.jpg',), image=None):
    """Class folders with links to one image under some names.

    Where the names hold ``{folder}``, which stands for the folder's name, every folder is one of its own. Otherwise all
    are links to a single folder, which is much faster to make and to remove: nothing may then be changed in them.
    """
    image = image or save_image(root.parent / f'.{root.name}.png')
    root.mkdir(parents=True, exist_ok=True)
    shared = root.parent / f'.{root.name}'
    own = any('{folder}' in name for name in names)
    for folder in [root / folder for folder in folders] if own else [shared]:
        folder.mkdir()
        for name in names:
            (folder / name.format(folder=folder.name)).symlink_to(image)
    for folder in () if own else folders:
        (root / folder).symlink_to(shared)
    return root


def make_imagenet(root, splits=('train', 'val')):
    for split in splits:
        make_tree(root / split, IMAGENET_WNIDS)
    return root


def make_v2(root):
    return make_tree(root, map(str, range(1000)))


def make_r(root):
    return make_tree(root, read_class_map('imagenet_r'))


def make_a(root):
    return make_tree(root, read_class_map('imagenet_a'))


def make_objectnet(root, names=('a.png',)):
    """Returns {folder: indices of ImageNet's classes} of the classes that overlap."""
    groups = make_objectnet_mappings(root / 'mappings')
    image = save_image(root.parent / '.objectnet.png', 61, 47, border=2)
    make_tree(root / 'images', groups, names, image)
    return {folder: group for folder, group in groups.items() if group}


def make_objectnet_mappings(folder, seed=0):
    """The four files in their published format, with 313 made-up classes; returns {folder: indices of ImageNet's
    classes}."""
    rng = random.Random(seed)
    shuffled = rng.sample(range(1000), 1000)
    groups = {}
    for number in rng.sample(range(313), 313):
        size = OVERLAP[number] if number < len(OVERLAP) else 0
        name = 'alarm_clock' if number == 0 else f'thing_{number}_closed'
        groups[name], shuffled = tuple(sorted(shuffled[:size])), shuffled[size:]
    labels = {name: name.replace('_closed', ' (closed)').replace('_', ' ').capitalize() for name in groups}
    # ImageNet's labels stand in the devkit's order, which is not the usual one; two of them are the same word.
    texts = [f'{wnid}, also {wnid}' for wnid in IMAGENET_WNIDS]
    texts[shuffled[0]] = texts[shuffled[1]] = 'crane'
    devkit = rng.sample(range(1000), 1000)  # number in the devkit of each usual index
    folder.mkdir(parents=True)
    (folder / 'folder_to_objectnet_label.json').write_text(json.dumps(labels))
    (folder / 'objectnet_to_imagenet_1k.json').write_text(
        json.dumps(
            {labels[name]: '; '.join(texts[index] for index in group) for name, group in groups.items() if group}
        )
    )
    (folder / 'pytorch_to_imagenet_2012_id.json').write_text(
        json.dumps({str(index): number for index, number in enumerate(devkit)})
    )
    lines = dict(zip(devkit, texts))
    (folder / 'imagenet_to_label_2012_v2').write_text(''.join(f'{lines[number]}\n' for number in range(1000)))
    return groups


def make_flat_val(folder, count=1000, seed=0):
    """Flat validation images in a shuffled order of classes; returns the WordNet id of each, in order."""
    wnids = random.Random(seed).sample(IMAGENET_WNIDS, 1000)[:count]
    image = save_image(folder.parent / '.val.png')
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / f'ILSVRC2012_val_{number:08d}.JPEG').symlink_to(image)
    return wnids


def write_devkit(folder, wnids, seed=1):
    """Ground truth and ``meta.mat`` as in the devkit: numbers from 1 in an order of their own, then synsets that are no
    classes."""
    order = random.Random(seed).sample(IMAGENET_WNIDS, 1000)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'ILSVRC2012_validation_ground_truth.txt').write_text(
        ''.join(f'{order.index(wnid) + 1}\n' for wnid in wnids)
    )
    synsets = dict(ILSVRC2012_ID=list(range(1, 1003)), WNID=[*order, 'n00001740', 'n00001930'])
    mat4py.savemat(str(folder / 'meta.mat'), dict(synsets=synsets))


def make_corruptions(
    root,
    corruptions=('blur/defocus_blur', 'digital/contrast'),
    severities=(1, 5),
    wnids=IMAGENET_WNIDS,
    names=('ILSVRC2012_val_00000001.JPEG',),
):
    """Each with an image of its own."""
    for number, place in enumerate(f'{corruption}/{severity}' for corruption in corruptions for severity in severities):
        image = save_image(root.parent / f'.c{number}.png', 224, 224, seed=number)
        make_tree(root / place, wnids, names, image)
    return root


def make_waterbirds(root, train=(6, 3, 2, 5), val=(3, 3, 2, 2), test=(4, 4, 3, 3), image=save_small_image):
    """Images of the groups of each split, and ``metadata.csv`` with the published columns in a shuffled order; returns
    its rows."""
    rows, number = [], 0
    for split, groups in enumerate((train, val, test)):
        for group, count in enumerate(groups):
            label, place = divmod(group, 2)
            for _ in range(count):
                number += 1
                folder = ('004.Groove_billed_Ani', '001.Black_footed_Albatross')[label]
                name = f'{folder}/{folder[4:]}_{number:04d}.jpg'
                image(root / name)
                rows.append(
                    dict(img_id=number, img_filename=name, y=label, split=split, place=place, place_filename='/f')
                )
    random.Random(0).shuffle(rows)
    write_csv(root / 'metadata.csv', rows)
    return rows


def draw_slowly(names, number, seed=0):
    """``number`` of some names in the order of the SHA-256 of seed and name."""
    return set(sorted(names, key=lambda name: sha256(f'{seed}/{name}'.encode()).hexdigest())[:number])


def write_csv(path, rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def class_name(wnid):
    return open_clip.IMAGENET_CLASSNAMES[IMAGENET_WNIDS.index(wnid)]


def image_paths(dataset):
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def class_counts(dataset):
    return np.bincount(dataset.get_gt_labels(), minlength=len(dataset.metainfo['classes'])).tolist()


def make_domains(root, domains=('Caltech101', 'LabelMe', 'SUN09', 'VOC2007'), per_class=10):
    """VLCS in DomainBed's layout."""
    for domain in domains:
        names = [f'{{folder}}_{number}.jpg' for number in range(per_class)]
        make_tree(root / domain, ('bird', 'car', 'chair', 'dog', 'person'), names)
    return root


def make_fmow(root, table):
    """FMoW-WILDS, of (split, category, timestamp, country) of each image."""
    rows = [dict(zip(('split', 'category', 'timestamp', 'country_code'), row)) for row in table]
    for number in range(len(rows)):
        save_small_image(root / 'images' / f'rgb_img_{number}.png')
    write_csv(root / 'rgb_metadata.csv', rows)
    countries = [('USA', 'Americas'), ('KEN', 'Africa'), ('ATA', '')]
    write_csv(root / 'country_code_mapping.csv', [dict(zip(('alpha-3', 'region'), row)) for row in countries])
    return root


def make_celeba(root, faces, image_dir='img_align_celeba'):
    """CelebA, of (blond, male, split) of each image; the former are −1 or 1."""
    attributes, splits = [], []
    for number, (blond, male, split) in enumerate(faces, start=1):
        name = f'{number:06d}.jpg'
        save_small_image(root / image_dir / name)
        attributes.append(dict(image_id=name, Bald=-1, Blond_Hair=blond, Male=male))
        splits.append(dict(image_id=name, partition=split))
    write_csv(root / 'list_attr_celeba.csv', attributes)
    write_csv(root / 'list_eval_partition.csv', splits)
    return root
