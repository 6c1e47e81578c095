"""Zero-shot CLIP ViT-B/16 on real images of ImageNet, by tools/test.py with the published config.

Needs in $MMCFMASK_TEST_DATA: ``imagenet_sample/<WordNet id>/<name>.JPEG``, one image of each class; ``vitb16.pt``, the
image tower; ``imagenet_text_photo.npy`` and ``imagenet_text_descriptions.npy``, class embeddings (1000, 512).
"""

import csv
import os
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mmcfmask.engine.run_test import run_test

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get('MMCFMASK_TEST_DATA', '/nowhere'))
NEEDED = ('imagenet_sample', 'vitb16.pt', 'imagenet_text_photo.npy', 'imagenet_text_descriptions.npy')
pytestmark = pytest.mark.skipif(
    not all((REAL / name).exists() for name in NEEDED), reason=f'needs {", ".join(NEEDED)} in $MMCFMASK_TEST_DATA'
)
SOME = list(range(7, 1000, 50))


def run_tool(folder, embeddings, *options):
    """(top-1, predicted class names) of the ID set."""
    run = run_test(
        ROOT / 'configs/baselines/zeroshot_vitb16.py',
        options=[
            f"model.head.class_weights=dict(_delete_=True, type='file', path='{REAL}/imagenet_text_{embeddings}.npy')",
            f'model.backbone.pretrained={REAL}/vitb16.pt',
            'test_dataloader.imagenet.batch_size=50',
            'test_dataloader.imagenet.num_workers=0',
            *options,
        ],
        predictions=folder,
        work_dir=folder / 'work',
    )
    with open(folder / 'imagenet.csv', newline='') as file:
        predicted = [row['pred'] for row in csv.DictReader(file)]
    return run['metrics']['imagenet/top1'], predicted


def read_image(path):
    """As CLIP: short side 224 by Pillow's bicubic, centre crop, CLIP's mean and deviation."""
    image = Image.open(path).convert('RGB')
    width, height = image.size
    size = (224, int(224 * height / width)) if width < height else (int(224 * width / height), 224)
    left, top = (round((side - 224) / 2) for side in size)
    image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return ((torch.from_numpy(np.array(image)) / 255 - torch.tensor(mean)) / torch.tensor(deviation)).permute(2, 0, 1)


def predict_by_hand(embeddings, classes):
    """Index of the class of the nearest embedding for the image of each class."""
    tower = open_clip.create_model('ViT-B-16-quickgelu')
    loaded = tower.load_state_dict(torch.load(REAL / 'vitb16.pt', weights_only=True), strict=False)
    assert not loaded.unexpected_keys and not any(key.startswith('visual.') for key in loaded.missing_keys)
    folders = sorted((REAL / 'imagenet_sample').iterdir())
    words = torch.from_numpy(np.load(REAL / f'imagenet_text_{embeddings}.npy')).float()
    with torch.no_grad():
        paths = [next(iter(folders[index].iterdir())) for index in classes]
        features = tower.eval().visual(torch.stack([read_image(path) for path in paths]))
    return (features @ (words / words.norm(dim=1, keepdim=True)).T).argmax(dim=1).tolist()


def test_some_images_are_classified_as_by_hand(tmp_path):
    """Class folders without `val` around them, so split_dir=''."""
    top1, predicted = run_tool(
        tmp_path,
        'photo',
        f'test_dataloader.imagenet.dataset.data_root={REAL}/imagenet_sample',
        'test_dataloader.imagenet.dataset.split_dir=""',
        f'test_dataloader.imagenet.dataset.indices={SOME}',
    )
    expected = predict_by_hand('photo', SOME)
    names = open_clip.IMAGENET_CLASSNAMES
    assert [re.sub(r' \(\d+\)$', '', name) for name in predicted] == [names[index] for index in expected]
    right = sum(label == index for label, index in zip(expected, SOME))
    assert top1 == pytest.approx(100 * right / len(SOME)) and right > len(SOME) / 2


@pytest.mark.slow
@pytest.mark.parametrize('embeddings, expected', [('photo', 68.7), ('descriptions', 72.1)])
def test_all_images(tmp_path, embeddings, expected):
    (tmp_path / 'val').symlink_to(REAL / 'imagenet_sample')
    top1, predicted = run_tool(tmp_path, embeddings, f'data_root={tmp_path}')
    assert len(predicted) == 1000 and top1 == pytest.approx(expected, abs=0.11)  # one image
