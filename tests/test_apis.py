"""Python gives what the command line gives: weights, pixels, predictions."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

import mmcfmask
from mmcfmask import inference_config, load_model
from mmcfmask.datasets import ShapesDataset
from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_test import run_test
from mmcfmask.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIG = 'configs/shapes/cfmask.py'
NUMBER = 40
PIPELINES = dict(
    published="""[dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64), dict(type='PackInputs')]""",
    resized="""[dict(type='LoadResizedImage', scale=64, reducing_gap=1.), dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs')]""",
    opencv="""[dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=64, edge='short'),
    dict(type='CenterCrop', crop_size=64), dict(type='PackInputs')]""",
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint whose model answers otherwise than the start."""
    model = load_model(CONFIG)
    with torch.no_grad():
        model.head.fc.weight.add_(
            torch.randn(model.head.fc.weight.shape, generator=torch.Generator().manual_seed(0)) * 6
        )
    path = tmp_path_factory.mktemp('trained') / 'best.pth'
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=ShapesDataset.METAINFO['classes']))),
        path,
    )
    return str(path)


def evaluate(tmp_path, config, checkpoint, *options):
    """What a test says of the ID set: accuracy, and the rows of its predictions."""
    folder = tmp_path / 'predictions'
    run = run_test(config, checkpoint, options, predictions=folder, work_dir=tmp_path / 'w', shifts=[])
    with open(folder / 'test.csv', newline='') as file:
        return run['metrics']['test/top1'], list(csv.DictReader(file))


def test_accuracy_of_readme_is_that_of_the_test(tmp_path, trained):
    accuracy, rows = evaluate(tmp_path, CONFIG, trained, f'test_dataloader.test.dataset.size={NUMBER}')
    assert rows[1]['path'] == 'shapes/test/0/1'  # of a set without files
    assert 20 < accuracy < 95  # neither the start's (95) nor that of random weights (10)
    dataset = ShapesDataset('test', size=NUMBER)
    files = [tmp_path / f'{index}.png' for index in range(NUMBER)]
    for index, file in enumerate(files):
        Image.fromarray(dataset[index]['img']).save(file)
    for model in (
        load_model(CONFIG, trained),
        inference_config(CONFIG, trained),
        get_model(inference_config(CONFIG, trained)),
    ):
        inferencer = ImageClassificationInferencer(model)
        results = inferencer(list(map(str, files)), batch_size=16)
        assert [result['pred_class'] for result in results] == [row['pred'] for row in rows]
        right = [
            result['pred_label'] == dataset.get_data_info(index)['gt_label'] for index, result in enumerate(results)
        ]
        assert 100 * np.mean(right) == pytest.approx(accuracy)
    arrays = [dataset[index]['img'][:, :, ::-1] for index in range(NUMBER)]  # BGR, as mmpretrain has it
    assert [result['pred_class'] for result in inferencer(arrays)] == [row['pred'] for row in rows]


@pytest.mark.parametrize('name', PIPELINES)
def test_photos_are_read_as_in_the_test(tmp_path, trained, name):
    """Large and turned by a tag, as cameras write them: with OpenCV and the tag many would get another class."""
    shapes, exif = ShapesDataset('test', size=NUMBER), Image.Exif()
    exif[0x0112] = 6
    for index in range(NUMBER):
        folder = tmp_path / 'photos' / shapes.metainfo['classes'][shapes.get_data_info(index)['gt_label']]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes[index]['img']).resize((300, 200)).save(folder / f'{index}.jpg', exif=exif)
    config = tmp_path / 'photos.py'
    config.write_text(f"""
_base_ = 'mmcfmask::shapes/cfmask.py'
photos = dict(type='FolderDataset', data_root={str(tmp_path / 'photos')!r},
              folders={list(shapes.metainfo['classes'])!r}, pipeline={PIPELINES[name]})
test_dataloader = dict(test=dict(dataset=dict(_delete_=True, **photos)))
model = dict(data_preprocessor=dict(to_rgb=True))
""")
    assert (
        load_model(config)._dataset_meta['classes'] == shapes.metainfo['classes']
    )  # names of folders, without a checkpoint
    accuracy, rows = evaluate(tmp_path, str(config), trained)
    inferencer = ImageClassificationInferencer(load_model(config, trained))
    assert [result['pred_class'] for result in inferencer([row['path'] for row in rows])] == [
        row['pred'] for row in rows
    ]
    dataset = DATASETS.build(inferencer.config.test_dataloader.dataset)
    for item, batch in zip(dataset, inferencer.preprocess([row['path'] for row in rows])):
        assert torch.equal(item['inputs'], batch['inputs'][0])


def test_config_of_a_wrapped_set(tmp_path):
    """mmpretrain looks for a pipeline in the test set itself."""
    (tmp_path / 'wrapped.py').write_text(f"""
_base_ = 'mmcfmask::shapes/cfmask.py'
photos = dict(type='FolderDataset', data_root='photos', folders=['cat', 'dog'], pipeline={PIPELINES['resized']})
test_dataloader = dict(test=dict(dataset=dict(
    _delete_=True, type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=1, dataset=photos), photos])))
""")
    cfg = inference_config(str(tmp_path / 'wrapped.py'))
    assert (
        cfg.test_dataloader.dataset.type == 'FolderDataset'
        and cfg.test_dataloader.dataset.pipeline[0].type == 'LoadResizedImage'
    )
    assert cfg.classes is None  # the images are not at hand


def test_weights_are_in_place(trained):
    saved = torch.load(trained)['state_dict']
    start = load_model(CONFIG)
    cfg = inference_config(CONFIG, trained)
    for pretrained in (False, True):
        model = get_model(cfg, pretrained=pretrained)
        assert not model.training and all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert torch.equal(get_model(inference_config(CONFIG)).head.fc.weight, start.head.fc.weight)
    loaded = load_model(CONFIG, trained, options={'model.crop_scale': 0.9})
    assert (
        loaded.crop_scale == 0.9 and not loaded.training and torch.equal(loaded.head.fc.weight, saved['head.fc.weight'])
    )


def test_models_of_mmpretrain_have_their_weights_too(tmp_path):
    """get_model does not call init_weights."""
    config, weights = tmp_path / 'resnet.py', str(tmp_path / 'resnet.pth')

    def write(init_cfg):
        config.write_text(f"""
_base_ = 'mmcfmask::shapes/zeroshot.py'
model = dict(
    _delete_=True, type='ImageClassifier', init_cfg={init_cfg},
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
""")

    write(None)
    saved = MODELS.build(load_config(str(config), {}).model).state_dict()
    torch.save(dict(state_dict=saved), weights)
    with pytest.raises(ConfigError, match='the image tower would have random weights: give a checkpoint'):
        load_model(config)
    models = [load_model(config, weights), get_model(inference_config(str(config), weights))]
    write(dict(type='Pretrained', checkpoint=weights))
    for model in [*models, load_model(config), get_model(inference_config(str(config)))]:
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_no_model_without_weights(tmp_path, trained):
    for options, part in (
        ({'model.backbone.pretrained': None}, 'image tower'),
        ({'model.head.class_weights': None}, 'head'),
    ):
        with pytest.raises(ConfigError, match=f'the {part} would have random weights: give a checkpoint, or set model'):
            load_model(CONFIG, options=options)
        load_model(CONFIG, trained, options=options)
    with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
        load_model(CONFIG, tmp_path / 'lost.pth')
    torch.save(
        dict(state_dict=dict(torch.load(trained)['state_dict'], **{'head.fc.weight': torch.zeros(10, 3)})),
        tmp_path / 'other.pth',
    )
    with pytest.raises(ValueError, match='other.pth does not fit the model of the config'):
        load_model(CONFIG, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth does not fit the model of the config'):
        get_model(inference_config(CONFIG, str(tmp_path / 'other.pth')))


def test_public_names():
    names = ['inference_config', 'load_model', 'patch_mask', 'refill', 'relevance_map']
    assert mmcfmask.__all__ == ['__version__', *names]
    code = f'from mmcfmask import {", ".join(names)}'  # the first import of a program
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


def test_examples_of_readme(tmp_path, trained):
    """As they stand there, but for the names of the files."""
    blocks = re.findall(r'```python\n(from mm.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    assert len(blocks) == 2
    Image.fromarray(ShapesDataset('test', size=1)[0]['img']).save(tmp_path / 'photo.jpg')
    names = {
        'configs/cfmask_vitb16.py': CONFIG,
        'work_dirs/cfmask_vitb16/best.pth': trained,
        'photo.jpg': str(tmp_path / 'photo.jpg'),
    }
    for name, own in names.items():
        assert name in blocks[0]
        blocks[0] = blocks[0].replace(f"'{name}'", repr(own))
    scope = {}
    exec(blocks[0], scope)
    items = [dict(inputs=torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)) for _ in range(2)]
    scope['images'] = scope['model'].data_preprocessor(dict(inputs=[item['inputs'] for item in items]))['inputs']
    scope['labels'] = torch.tensor([0, 1])
    exec(blocks[1], scope)
    assert scope['counterfactual'].shape == scope['images'].shape


def test_own_training_loop():
    """With the public names."""
    model = load_model(CONFIG)
    dataset = DATASETS.build(dict(type='ShapesDataset', split='train', size=4, pipeline=[dict(type='PackInputs')]))
    items = [dataset[index] for index in range(4)]
    images = model.data_preprocessor(dict(inputs=[item['inputs'] for item in items]))['inputs']
    relevance = mmcfmask.relevance_map(model, images, torch.tensor([0, 1, 2, 3]))
    mask = mmcfmask.patch_mask(relevance, 'object', 0.3)
    counterfactual = mmcfmask.refill(images, mask, 'single')
    changed = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert relevance.shape == (4, 8, 8) and torch.equal(counterfactual[~changed], images[~changed])
    assert (counterfactual[changed] != images[changed]).float().mean() > 0.5
