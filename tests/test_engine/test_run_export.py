"""From a config and a checkpoint to a folder for another library."""

import json
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from forks import run_script
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS

from mmcfmask import load_model
from mmcfmask.datasets import ShapesDataset
from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_export import PARTS, check_part, find_metrics, read_preprocessing, run_export, write_model
from mmcfmask.engine.run_soup import run_soup
from mmcfmask.engine.run_test import run_test
from mmcfmask.engine.testing import forget_training
from mmcfmask.models.towers.adapters.base import UP, holds_adapters

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/shapes/cfmask.py')
LORA = str(ROOT / 'configs/shapes/cfmask_lora.py')
R_ADAPTER = str(ROOT / 'configs/shapes/cfmask_r_adapter.py')
IMAGES = torch.randn(3, 3, 64, 64)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint whose tower and head differ from the pretrained ones, and its metrics.json."""
    folder = tmp_path_factory.mktemp('trained')
    model = load_model(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    meta = dict(
        cfg=load_config(CONFIG).pretty_text,
        seed=7,
        epoch=2,
        dataset_meta=dict(classes=ShapesDataset.METAINFO['classes']),
    )
    path = folder / 'best.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    options = ['test_dataloader.test.dataset.size=20']
    run_test(CONFIG, path, options, shifts=[], out=folder / 'metrics.json', work_dir=folder / 'work')
    return path


@pytest.fixture(scope='module')
def expected(trained):
    model = load_model(CONFIG, trained)
    with torch.no_grad():
        return dict(features=model.extract_feat(IMAGES)[-1], logits=model(IMAGES))


@pytest.fixture(scope='module', params=[LORA, R_ADAPTER])
def adapted(request, tmp_path_factory):
    """A config with adapters, a checkpoint of them, and the logits of its model."""
    cfg = load_config(request.param)
    forget_training(cfg.model)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(UP):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        logits = model(IMAGES)
    meta = dict(cfg=cfg.pretty_text, seed=7, dataset_meta=dict(classes=ShapesDataset.METAINFO['classes']))
    path = tmp_path_factory.mktemp('adapted') / 'best.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return request.param, path, logits


def test_adapters_alone_and_merged(adapted, tmp_path):
    """A checkpoint of adapters and one of merged weights are tested, loaded and exported alike."""
    config, path, logits = adapted
    merged = tmp_path / 'merged.pth'
    run_soup(config, [path], merged)
    assert path.stat().st_size < 0.25 * merged.stat().st_size
    weights = torch.load(merged, weights_only=True)['state_dict']
    assert not holds_adapters(weights) and 'backbone.visual.conv1.weight' in weights
    assert not torch.equal(load_model(CONFIG)(IMAGES), logits)
    metrics = []
    for name, checkpoint in dict(alone=path, merged=merged).items():
        model = load_model(config, checkpoint)
        assert model.state_dict().keys() == weights.keys()
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), logits, rtol=1e-5, atol=1e-4)
        short = ['test_dataloader.test.dataset.size=20']
        run = run_test(config, checkpoint, short, shifts=[], work_dir=tmp_path / name)
        metrics.append(run['sets']['test']['metrics'])
    assert metrics[0] == pytest.approx(metrics[1])
    run_export(config, path, to='torch', out=tmp_path / 'out')
    graph = torch.export.load(tmp_path / 'out' / 'model.pt2').module()
    torch.testing.assert_close(graph(IMAGES), logits, rtol=1e-5, atol=1e-4)


def test_adapters_need_the_config_of_their_training(adapted):
    config, path, _ = adapted
    kind = 'lora' if config == LORA else 'r_adapter'
    with pytest.raises(ValueError, match=rf"trained with model.backbone = {{'{kind}': .*, but now it has {{}}"):
        load_model(CONFIG, path)
    with pytest.raises(ValueError, match=f"but now it has {{'{kind}': .*'rank': 4"):
        load_model(config, path, options={f'model.backbone.{kind}.rank': 4})
    if kind == 'r_adapter':  # what acts in training alone may change
        load_model(config, path, options={'model.backbone.r_adapter.drop': 0.2})


def usage(folder):
    """The Python code of a card."""
    code = (folder / 'README.md').read_text().partition('```python\n')[2].partition('```')[0]
    return code.replace('FOLDER', str(folder))


def test_open_clip(trained, expected, tmp_path):
    folder = run_export(CONFIG, trained, to='open_clip', out=tmp_path / 'out')
    found = {}
    exec(usage(folder), found)
    with torch.no_grad():
        features = found['model'].eval().encode_image(IMAGES)
    torch.testing.assert_close(features, expected['features'], rtol=1e-5, atol=1e-5)
    assert folder == tmp_path / 'out' and {path.name for path in folder.iterdir()} == {
        'README.md',
        'open_clip_config.json',
        'open_clip_model.safetensors',
    }


@pytest.mark.parametrize('to, part, output', [('torch', None, 'logits'), ('torch', 'image', 'features')])
def test_torch(to, part, output, trained, expected, tmp_path):
    folder = run_export(CONFIG, trained, to=to, part=part, out=tmp_path)
    found = dict(images=IMAGES)
    exec(usage(folder), found)
    torch.testing.assert_close(found[output], expected[output], rtol=1e-5, atol=1e-5)
    if to == 'torch':
        with zipfile.ZipFile(folder / 'model.pt2') as file:
            texts = [file.read(name).decode() for name in file.namelist() if name.endswith('.json')]
        assert texts and not any(str(Path(root)) in text for text in texts for root in (ROOT, torch.__path__[0]))


def test_mmpretrain(trained, expected, tmp_path):
    folder, found = run_export(CONFIG, trained, to='mmpretrain', out=tmp_path), dict(images=IMAGES)
    with torch.no_grad():
        exec(usage(folder), found)
    torch.testing.assert_close(found['features'], expected['features'], rtol=1e-5, atol=1e-5)


def test_the_pretrained_model(tmp_path):
    folder = run_export(CONFIG, to='open_clip', part='image', out=tmp_path)
    name = 'ShapesCLIP-ViT-8-64'
    before = load_model(CONFIG).backbone.visual.eval()
    after = open_clip.create_model(name, pretrained_image_path=str(folder / 'open_clip_model.safetensors')).eval()
    with torch.no_grad():
        torch.testing.assert_close(after.encode_image(IMAGES), before(IMAGES))
    text = (folder / 'README.md').read_text()
    assert f'Image tower: {name} (shapes), not fine-tuned (zero-shot)' in text and '## Training' not in text


def test_the_card(trained, tmp_path):
    text = (run_export(CONFIG, trained, to='torch', out=tmp_path) / 'README.md').read_text()
    run = json.loads(trained.with_name('metrics.json').read_text())
    metrics = run['sets']['test']['metrics']
    for part in (
        'Image tower: ShapesCLIP-ViT-8-64 (shapes), fine-tuned by cfmask',
        'pipeline_tag: image-classification',
        f'| test | {metrics["top1"]:.2f} | {metrics["mean_per_class"]:.2f} |',
        'seed 7',
        '| model.losses | ',
        '| train_dataloader.dataset.type | ShapesDataset |',
        'shorter side to 64 pixels',
        '| Mean | 0.481455, 0.457827, 0.408211 |',
        '0: circle, 1: square',
    ):
        assert part in text, part
    assert str(trained.parent) not in text


def test_results_of_another_checkpoint(trained, tmp_path):
    other = tmp_path / 'other.pth'
    other.write_bytes(trained.read_bytes() + b' ')
    metrics = tmp_path / 'metrics.json'
    metrics.write_text(trained.with_name('metrics.json').read_text())
    assert find_metrics(str(trained)).seed == 7 and find_metrics(str(other)) is None and find_metrics(None) is None
    assert find_metrics(str(trained), str(metrics)).path == metrics
    with pytest.raises(ValueError, match='--metrics .* results of another checkpoint'):
        find_metrics(str(other), str(metrics))
    with pytest.raises(FileNotFoundError, match='no such file'):
        find_metrics(str(trained), str(tmp_path / 'missing.json'))
    metrics.write_text('{')
    assert find_metrics(str(other)) is None
    with pytest.raises(ValueError, match='not valid JSON'):
        find_metrics(str(other), str(metrics))


def test_parts():
    assert {to: check_part(to, None) for to in PARTS} == {to: parts[0] for to, parts in PARTS.items()}
    with pytest.raises(ValueError, match="unknown format 'onx'. Did you mean 'onnx'"):
        check_part('onx', None)
    with pytest.raises(
        ValueError, match="open_clip holds full or image, not 'classifier'; .* hf, torch, onnx-classifier"
    ):
        check_part('open_clip', 'classifier')


def test_what_a_graph_leaves_out_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match='model.crop_scale is set.*--cfg-options model.crop_scale=None'):
        run_export(CONFIG, trained, {'model.crop_scale': 0.9}, to='torch', out=tmp_path)


def test_a_folder_with_files_is_refused(trained, tmp_path):
    (tmp_path / 'README.md').touch()
    with pytest.raises(OSError, match='is not empty: choose another with --out'):
        run_export(CONFIG, trained, to='torch', out=tmp_path)


def test_another_backbone_names_the_formats(tmp_path):
    head = dict(type='CLIPDistillHead', num_classes=2, in_channels=32)
    backbone = dict(
        type='VisionTransformer',
        arch=dict(embed_dims=32, num_layers=1, num_heads=4, feedforward_channels=32),
        img_size=32,
    )
    model = ImageClassifier(backbone, head=head).eval()
    preprocessing = read_preprocessing(model, {})
    assert preprocessing.image_size == (32, 32) and preprocessing.mean == (0, 0, 0)
    assert preprocessing.std == pytest.approx([1 / 255] * 3)
    with pytest.raises(ValueError, match='is a VisionTransformer, not a tower of open_clip: export it to torch, onnx'):
        write_model(tmp_path, model, 'hf', 'full', preprocessing)
    assert 'logits = model(images)' in write_model(tmp_path, model, 'torch', 'classifier', preprocessing)


def test_the_size_of_the_resized_image():
    model = load_model(CONFIG)
    pipeline = [dict(type='ResizeEdge', scale=72), dict(type='CenterCrop', crop_size=64)]
    assert read_preprocessing(model, dict(pipeline=pipeline)).edge == 72
    assert read_preprocessing(model, dict(pipeline=[dict(type='ResizeCenterCrop', image_size=64)])).edge == 64


def test_tool(trained, tmp_path):
    command = ('tools/export.py', CONFIG, '--to', 'open_clip', trained, '--out', tmp_path / 'out')
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{tmp_path / "out"}: README.md, open_clip_config.json, open_clip_model.safetensors\n'
    done = run_script(*command)
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'is not empty' in done.stderr
