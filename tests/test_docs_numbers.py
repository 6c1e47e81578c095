"""Numbers and names in the documentation are those of the code."""

import ast
import inspect
import re
import statistics

import pytest
import yaml
from mmengine.config import Config
from mmpretrain.registry import MODELS
from pages import PAGES, ROOT, number, table

from mmcfmask.counterfactual import random_views
from mmcfmask.datasets import shapes
from mmcfmask.datasets.images import EXTENSIONS
from mmcfmask.datasets.layouts import SETS, WATERBIRDS_GROUPS
from mmcfmask.datasets.published import BENCHMARKS
from mmcfmask.evaluation import (
    coarse,
    describe_run,
    describe_set,
    f1,
    groups,
    kept,
    metrics,
    read_reference_models,
    reference_line,
)
from mmcfmask.models import CARFT, L2SP, CLIPDistillHead, KNNGate, LipsumFT
from mmcfmask.models.inference.relevance_crop import CROP_SCALE
from mmcfmask.models.preprocessor import PUBLISHED_VALUES


def test_shapes():
    cfg = Config.fromfile(ROOT / 'configs/_base_/shapes.py')
    sizes = {
        dataset.split: dataset.size
        for dataset in (
            cfg.train_dataloader.dataset,
            cfg.val_dataloader.dataset,
            *(loader.dataset for loader in cfg.test_dataloader.values()),
        )
    }
    sizes['pretrain'] = shapes.SPLIT_SIZES['pretrain']
    documented = {row[0].strip('`'): int(number(row[1])) for row in table('docs/shapes.md', '| split')}
    assert documented == sizes and tuple(documented) == shapes.SPLITS
    text = ' '.join(PAGES['docs/shapes.md'].split())
    assert f'up to {shapes.SPLIT_SIZES["train"]} training images' in text
    assert f'Classes: {", ".join(shapes.SHAPES_CLASSES)}.' in text
    assert f'{len(shapes.TEXTURES)} textures × {len(shapes.COLORS)} colours' in text
    assert f'{shapes.IMAGE_SIZE}×{shapes.IMAGE_SIZE}' in text


def test_mini_clip():
    text = ' '.join(PAGES['docs/shapes.md'].split())
    folder = ROOT / 'mmcfmask/assets'
    tower = yaml.safe_load((folder / 'ShapesCLIP-ViT-8-64.json').read_text())
    vision, words = tower['vision_cfg'], tower['text_cfg']
    heads = vision['width'] // vision['head_width']
    assert f'ViT {vision["image_size"]}/{vision["patch_size"]} image tower (width {vision["width"]}' in text
    assert f'{vision["layers"]} layers, {heads} heads, 1.04 M parameters)' in text
    assert f'width {words["width"]} with {words["layers"]} layers' in text
    backbone = MODELS.build(dict(type='OpenCLIPBackbone', model_name='ShapesCLIP-ViT-8-64', pretrained='shapes'))
    assert round(sum(weight.numel() for weight in backbone.parameters()) / 1e6, 2) == 1.04
    megabytes = (folder / 'ShapesCLIP-ViT-8-64.safetensors').stat().st_size / 1e6
    assert f'{megabytes:.1f} MB in fp16' in text


def test_published_sets():
    named = {row[1].strip('`'): row for row in table('docs/data.md', '| set') if row[1]}
    assert set(named) == {name for name in SETS if '-v2-' not in name} - {'imagenet-train', 'waterbirds', *BENCHMARKS}
    for name, row in named.items():
        images = 75 * 50_000 if '×' in row[2] else number(row[2])
        assert images == SETS[name].images and number(row[3]) == SETS[name].num_classes, name
    assert number(table('docs/data.md', '| set')[0][2]) == SETS['imagenet-train'].images


def test_waterbirds():
    rows = table('docs/data.md', '| split')
    assert {row[0]: tuple(map(number, row[1:5])) for row in rows} == WATERBIRDS_GROUPS
    assert [number(row[5]) for row in rows] == [sum(groups) for groups in WATERBIRDS_GROUPS.values()]


def test_endings_of_images():
    text = PAGES['docs/data.md']
    found = re.findall(r'`(\.\w+)`', text[text.index('## Image files') : text.index('in upper or lower case')])
    assert tuple(found) == EXTENSIONS


def test_thresholds():
    rows = {row[0].strip('`'): row[1:] for row in table('docs/methods.md', '| fill')}
    documented = {
        (mask, fill): number(value)
        for fill, values in rows.items()
        for mask, value in zip(('random', 'object', 'context'), [value.strip('*') for value in values])
    }
    assert documented == PUBLISHED_VALUES
    assert 'threshold 0.3' in PAGES['README.md'] and PUBLISHED_VALUES['object', 'single'] == 0.3


def default(function, name):
    return inspect.signature(function).parameters[name].default


def test_constants_of_methods():
    text = ' '.join(PAGES['docs/methods.md'].split())
    assert (
        f'λ = {default(CLIPDistillHead, "distill_weight"):.0f} and T = {default(CLIPDistillHead, "temperature"):.0f}'
        in text
    )
    assert f'L2-SP: α = {default(L2SP, "alpha")}, β = {default(L2SP, "beta")}.' in text
    assert f'CAR-FT: w = {default(CARFT, "weight"):.0f}.' in text
    texts, length = default(LipsumFT, 'num_texts'), default(LipsumFT, 'length')
    assert f'w = {default(LipsumFT, "weight"):.0f}, M = {texts} texts of {length} tokens' in text
    plus = Config.fromfile(ROOT / 'configs/cfmask_plus_vitb16.py').model
    assert [term.get('weight', 1.0) for term in plus.losses] == [1.0, 1.0] and 'with the same weight' in text
    assert f'with the published λ = {plus.head.distill_weight:.0f}' in text
    assert f'the {100 * plus.data_preprocessor.mask_share:.0f} % of the patches' in text
    assert f'in {100 * plus.data_preprocessor.color_mixing:.0f} %, a random matrix' in text
    rotation, zoom, shift = (default(random_views, name) for name in ('rotation', 'zoom', 'shift'))
    assert plus.data_preprocessor.views == dict(probability=0.5) and 'half of them are rotated' in text
    assert f'by up to {rotation:.0f}°, zoomed by a factor of up to {zoom:.0f} and shifted by up to a quarter' in text
    assert shift == 0.25
    assert f'{100 * default(KNNGate, "level"):.0f} % and k = {default(KNNGate, "k")}' in text
    assert f'has {CROP_SCALE} of the side' in text


def test_every_method_has_its_config():
    named = {config for row in table('docs/methods.md', '| Method') for config in re.findall(r'`([a-z0-9_]+)`', row[2])}
    configs = {path.stem for path in (ROOT / 'configs/shapes').glob('*.py')}
    own = {name for name in configs if name.endswith('_own')}  # the recipe of a method's authors
    assert named == configs - own and all(f'`{name}`' in PAGES['docs/methods.md'] for name in own)
    baselines = {path.stem.removesuffix('_vitb16') for path in (ROOT / 'configs/baselines').glob('*_vitb16.py')}
    assert baselines <= configs


def test_recipe():
    text = ' '.join(PAGES['docs/training.md'].split())
    cfg = Config.fromfile(ROOT / 'configs/cfmask_vitb16.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == 3e-5 and 'peak learning rate 3e-5' in text
    assert f'weight decay {optimizer.weight_decay} on all parameters' in text
    assert f'clipped to {cfg.optim_wrapper.clip_grad.max_norm:.0f}' in text
    assert f'{cfg.train_cfg.max_epochs} epochs, {cfg.total_batch_size} images per optimizer step' in text
    assert f'{cfg.val_dataloader.dataset.holdout.size:,} images held out' in text


def test_reference_lines():
    names = {'ImageNet-V2': 'imagenet-v2', 'ImageNet-R': 'imagenet-r', 'ImageNet-A': 'imagenet-a'}
    names |= {'ImageNet-Sketch': 'imagenet-sketch', 'ObjectNet': 'objectnet'}
    models = read_reference_models()
    assert f'the {len(models)} models that the testbed' in ' '.join(PAGES['docs/report.md'].split())
    for title, *values in table('docs/report.md', '| | models'):
        line = reference_line(models, 'imagenet', [names[title]] if title in names else list(names.values()))
        shown = [f'{line.models}', f'{line.slope:.3f}', f'{line.intercept:.3f}', f'{line.r2:.3f}']
        assert [value.replace('−', '-') for value in values] == shown, title


def returned(function) -> set[str]:
    """Keys of the dict that a function ends with."""
    body = ast.parse(inspect.getsource(function)).body[0].body
    return {keyword.arg for keyword in body[-1].value.keywords}


def test_fields_of_metrics_json():
    fields = [re.findall(r'`(\w+)`', row[0]) for row in table('docs/evaluation.md', '| field')]
    inner = [row[0].startswith('·') for row in table('docs/evaluation.md', '| field')]
    top = {name for names, inside in zip(fields, inner) if not inside for name in names}
    assert top == returned(describe_run) | {'wise_ft_alpha', 'soup', 'inference'}
    assert returned(describe_set) <= {name for names, inside in zip(fields, inner) if inside for name in names}


def test_metrics():
    documented = {name for row in table('docs/evaluation.md', '| metric') for name in re.findall(r'`(\w+)`', row[0])}
    source = ''.join(map(inspect.getsource, (metrics, groups, coarse, f1, kept)))
    assert documented >= {'top1', 'top5', 'mean_per_class', 'nll', 'ece', 'zero_shot_percent', 'mce'}
    assert [name for name in documented if name not in source] == []


@pytest.mark.parametrize(
    'name', ['docs/results.md', *(f'docs/results/{name}.md' for name in ('ablations', 'pacs', 'negative'))]
)
def test_averages_of_results(name):
    """The OOD average of every row is the mean of its shifts, up to rounding."""
    checked = 0
    for header, rows in re.findall(r'^(\|.*OOD avg \|.*)\n\|[-:| ]+\|\n((?:\|.*\n)+)', PAGES[name], re.MULTILINE):
        columns = [cell.strip() for cell in header.strip('|').split('|')]
        shifts = [
            index
            for index, column in enumerate(columns)
            if column in ('v2', 'r', 'sketch', 'a', 'art_painting', 'cartoon')
        ]
        for row in rows.splitlines() if shifts else ():
            cells = [cell.strip() for cell in row.strip('|').split('|')]
            average = columns.index('OOD avg')
            if not cells[average]:  # not tested
                continue
            values = [number(cells[index]) for index in range(shifts[0], average)]
            assert statistics.mean(values) == pytest.approx(number(cells[average]), abs=0.11), row
            checked += 1
    assert checked > 8


def test_results_are_short():
    assert len(PAGES['docs/results.md'].splitlines()) <= 150
