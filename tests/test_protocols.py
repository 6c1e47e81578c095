"""The published sets through the shipped config, from folders to numbers, with a model that reads the class from the
pixels."""

import numpy as np
import pytest
import trees
from mmengine.runner import Runner
from oracle import RUNS
from PIL import Image

from mmcfmask.datasets import ImageNetADataset, ImageNetRDataset, ObjectNetDataset
from mmcfmask.datasets.imagenet_shifts import IMAGENET_WNIDS, read_class_map
from mmcfmask.engine.config import load_config

CONFIG = str(trees.ROOT / 'configs' / 'baselines' / 'zeroshot_vitb16.py')
SHIFTS = ['imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet', 'imagenet-c']


def save_class(path, index, border=0):
    """An image of one colour, which says ``index``, in a red border as ObjectNet's images have."""
    pixels = np.full((12 + 2 * border, 15 + 2 * border, 3), trees.BORDER, np.uint8)
    pixels[border : border + 12, border : border + 15] = index // 256, index % 256, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """One image per class of every set; of ObjectNet's classes one for each of ImageNet's that mean it."""
    root = tmp_path_factory.mktemp('sets')
    for index, wnid in enumerate(IMAGENET_WNIDS):
        save_class(root / 'imagenet' / 'val' / wnid / 'a.png', index)
        save_class(root / 'imagenetv2-matched-frequency-format-val' / str(index) / 'a.png', index)
        save_class(root / 'sketch' / wnid / 'a.png', index)
        save_class(root / 'imagenet-c' / 'noise' / 'shot_noise' / '3' / wnid / 'a.png', index)
    for name in ('imagenet_r', 'imagenet_a'):
        for wnid in read_class_map(name):
            save_class(root / name.replace('_', '-') / wnid / 'a.png', IMAGENET_WNIDS.index(wnid))
    groups = trees.make_objectnet_mappings(root / 'objectnet-1.0' / 'mappings')
    for folder, group in groups.items():
        for index in group or (0,):
            save_class(root / 'objectnet-1.0' / 'images' / folder / f'{index}.png', index, border=2)
    return root


def run(root, work_dir, batch_size=64, **model):
    cfg = load_config(CONFIG, dict(data_root=str(root)))
    cfg.update(launcher='none', work_dir=str(work_dir), experiment_name=f'protocols{next(RUNS)}')
    cfg.model = dict(type='Oracle', **model)
    cfg.test_cfg.shifts = SHIFTS
    cfg.test_dataloader['imagenet-c'].dataset.update(corruptions=['shot_noise'], severities=[3])
    for loader in cfg.test_dataloader.values():
        loader.update(batch_size=batch_size, num_workers=0, pin_memory=False)
        for step in loader.dataset.pipeline:  # small images, the same steps in the same order
            step.update({key: 8 for key in ('scale', 'crop_size') if key in step})
    runner = Runner.from_cfg(cfg)
    return runner.test(), runner.test_loop


def test_who_knows_the_answers_scores_100_everywhere(root, tmp_path):
    metrics, loop = run(root, tmp_path)
    assert {name: metrics[f'{name}/top1'] for name in ['imagenet', *SHIFTS]} == dict.fromkeys(
        ['imagenet', *SHIFTS], 100.0
    )
    assert {name: metrics[f'{name}/mean_per_class'] for name in SHIFTS} == dict.fromkeys(SHIFTS, 100.0)
    assert metrics['ood_average/top1'] == 100 and not loop.missing
    assert metrics['imagenet-c/error_shot_noise'] == 0 and 'imagenet-c/mce' not in metrics
    # ObjectNet: a class that several of ImageNet's mean is right by any of them.
    assert len(loop.loaders['objectnet'].dataset) == sum(trees.OVERLAP) > len(trees.OVERLAP) == 113
    assert run(root, tmp_path, batch_size=7)[0] == metrics


def test_classes_outside_of_a_set_take_no_part(root, tmp_path):
    """A 1000-way argmax would be right on no image."""
    subsets = [ImageNetRDataset(str(root)), ImageNetADataset(str(root)), ObjectNetDataset(str(root))]
    inside = {index for dataset in subsets for group in dataset.metainfo['label_groups'] for index in group}
    metrics, _ = run(root, tmp_path, distracted=sorted(set(range(1000)) - inside))
    assert [metrics[f'{name}/top1'] for name in ('imagenet-r', 'imagenet-a', 'objectnet')] == [100.0, 100.0, 100.0]
    assert metrics['imagenet/top1'] < 1
