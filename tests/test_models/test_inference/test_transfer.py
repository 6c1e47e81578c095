"""Zero-shot ability that was kept, against plain code: both towers and the text tower called by hand."""

import numpy as np
import open_clip
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample
from oracle import RUNS
from PIL import Image

from mmcfmask.datasets import MissingSetError, ZeroShotDataset
from mmcfmask.engine.testing import compares_with_pretrained
from mmcfmask.errors import ConfigError

NAMES = ('green_field', 'red_brick', 'sea')
MEAN, STD = [122.77, 116.75, 104.09], [68.5, 66.63, 70.32]  # CLIP's
PROMPTS = ['a photo of a {}.', 'a picture of a {}.']
PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=32),
    dict(type='PackInputs'),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
    """Ten images of each of three classes in ``mine/test``, and two classes of the head in ``head``."""
    rng = np.random.default_rng(0)
    for folder in [*(f'mine/test/{name}' for name in NAMES), 'head/a', 'head/b']:
        (tmp_path / folder).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / folder / f'{number}.png')
    return tmp_path


def loader(dataset):
    return dict(
        batch_size=7,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, pipeline=PIPELINE),
    )


def config(root, pretrained, **zero_shot):
    return Config(
        dict(
            experiment_name=f'transfer{next(RUNS)}',
            default_scope='mmpretrain',
            custom_imports=dict(imports=['mmcfmask']),
            launcher='none',
            work_dir=str(root / 'work'),
            model=dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
                head=dict(type='CLIPDistillHead', num_classes=2),
                data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True),
            ),
            test_dataloader=dict(
                head=loader(dict(type='FolderDataset', data_root=str(root / 'head'))),
                mine=loader(dict(type='ZeroShotDataset', data_root=str(root / 'mine'), **zero_shot)),
            ),
            test_evaluator=dict(type='ShiftAccuracy', evaluators=dict(mine=dict(type='KeptZeroShot'))),
            test_cfg=dict(type='MultiSetTestLoop', id_set='head'),
            custom_hooks=[dict(type='CheckClassesHook')],
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
        )
    )


def test_both_towers_equal_plain_code(root, tiny_pretrained):
    cfg = config(root, tiny_pretrained, class_weights=dict(templates=PROMPTS))
    assert compares_with_pretrained(cfg)
    runner = Runner.from_cfg(cfg)
    loop = runner.test_loop  # built before the weights of a checkpoint are loaded
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in runner.model.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    metrics = runner.test()

    clip = open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval()
    tokenizer = open_clip.get_tokenizer('tiny-vit')
    with torch.no_grad():
        rows = []
        for name in NAMES:
            texts = [clip.encode_text(tokenizer([p.format(name.replace('_', ' '))])) for p in PROMPTS]
            mean = sum(text[0] / text[0].norm() for text in texts)
            rows.append(mean / mean.norm())
        right = dict(before=0, after=0)
        for label, name in enumerate(NAMES):
            for number in range(10):
                pixels = np.array(Image.open(root / 'mine/test' / name / f'{number}.png'))
                image = torch.from_numpy((pixels - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1).float()
                for when, tower in dict(before=clip.visual, after=runner.model.backbone).items():
                    z = tower(image[None])
                    z = (z[-1] if isinstance(z, tuple) else z)[0]
                    scores = [float(z @ row) for row in rows]
                    right[when] += scores.index(max(scores)) == label
    before, after = (100 * count / 30 for count in right.values())
    assert metrics['mine/accuracy'] == pytest.approx(after) and before != after
    assert metrics['mine/pretrained_accuracy'] == pytest.approx(before)
    assert metrics['mine/zero_shot_drop'] == pytest.approx(before - after)
    assert 'ood_average/top1' not in metrics and 'head/top1' in metrics
    assert runner.model.transfer is None and list(loop.transfers) == ['mine']


def test_nothing_is_lost_without_training(root, tiny_pretrained):
    metrics = Runner.from_cfg(config(root, tiny_pretrained)).test()
    assert metrics['mine/zero_shot_drop'] == 0 and metrics['mine/accuracy'] == metrics['mine/pretrained_accuracy']


def test_a_checkpoint_keeps_the_pretrained_tower_beside_it(root, tiny_pretrained):
    """tools/test.py loads no pretrained weights for a checkpoint, unless a set compares with them."""
    from mmcfmask.engine.testing import prepare_test

    cfg = config(root, tiny_pretrained)
    runner = Runner.from_cfg(cfg)
    path = root / 'checkpoint.pth'
    torch.save(dict(state_dict=runner.model.state_dict(), meta={}), path)
    for shifts, load in ((['mine'], True), ([], False)):
        tested = config(root, tiny_pretrained)
        prepare_test(tested, str(path), shifts)
        assert tested.model.backbone.get('load', True) is load


def test_errors(root, tiny_pretrained, tmp_path):
    np.save(tmp_path / 'weights.npy', np.eye(2, 16))
    weights = dict(type='file', path=str(tmp_path / 'weights.npy'))
    message = 'class_weights of mine: 2 class embeddings of width 16, but the set has 3 classes, and .* width 16'
    with pytest.raises(ConfigError, match=message):
        _ = Runner.from_cfg(config(root, tiny_pretrained, class_weights=weights)).test_loop
    cfg = config(root, tiny_pretrained)
    cfg.model = dict(type='Oracle', num_classes=2)
    with pytest.raises(ConfigError, match='mine is a ZeroShotDataset, which only a CounterfactualClassifier'):
        _ = Runner.from_cfg(cfg).test_loop
    metric = METRICS.build(dict(type='KeptZeroShot'))
    sample = DataSample(metainfo=dict(img_path='1.png')).set_gt_label(0)
    sample.pred_logits = torch.eye(3)[0]
    with pytest.raises(ConfigError, match='1.png has no answer of the pretrained model'):
        metric.process(None, [sample.to_dict()])
    with pytest.raises(ConfigError, match="class_weights.type='prototype' must be 'text' or 'file'"):
        ZeroShotDataset(str(root / 'mine'), class_weights=dict(type='prototype'))
    with pytest.raises(ConfigError, match="unknown benchmark='cifar'"):
        ZeroShotDataset(str(root / 'mine'), benchmark='cifar')
    with pytest.raises(MissingSetError, match='CIFAR-10 .*was not found: looked for cifar10 or cifar-10'):
        ZeroShotDataset(str(root), benchmark='cifar10')


def test_names_and_counts(root):
    dataset = ZeroShotDataset(str(root / 'mine'))
    assert len(dataset) == 30 and dataset.metainfo['class_weights'] == dict(
        type='text', classnames=['green field', 'red brick', 'sea'], templates=['a photo of a {}.']
    )
    (root / 'cifar-10').mkdir()
    (root / 'mine' / 'test').rename(root / 'cifar-10' / 'test')
    dataset = ZeroShotDataset(str(root), benchmark='cifar10', class_weights=dict(classnames=['a', 'b', 'c']))
    assert dataset.metainfo['protocol']['images'] == 10_000
    assert dataset.metainfo['class_weights']['classnames'] == ['a', 'b', 'c']
