"""Every shipped config: dumps and loads, builds, trains one iteration on tiny synthetic data, and tests."""

import ast
import copy
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from trees import make_celeba, make_domains, make_fmow, make_waterbirds

from mmcfmask.datasets import PACSDataset
from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.model import makes_counterfactuals
from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import skip_pretrained_weights

CONFIGS = Path(__file__).parents[1] / 'configs'
LOSSES = dict(
    CounterfactualDistillation='loss_distill',
    Distillation='loss_distill',
    L2SP='loss_l2sp',
    CARFT='loss_carft',
    FLYP='loss_flyp',
    LipsumFT='loss_lipsum',
    CounterfactualCrossEntropy='loss_counterfactual',
    ContextDistillation='loss_context_distill',
    CaRotImage='loss_orthogonality loss_self_distillation',
    CaRot='loss_flyp loss_orthogonality loss_self_distillation',
    StarFT='loss_flyp loss_starft',
    DualRisk='loss_descriptions',
    MPMNCE='loss_mpm_nce',
)
UNTRAINED = ('zeroshot', 'objects')
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('**/*.py') if path.parent.name != '_base_')
# Of folders with the same methods on other data or towers, `make test` trains one config.
ALIKE = ('pacs', 'waterbirds', 'domainbed', 'wilds', 'celeba', 'towers', 'variants')
SAMPLE = ('cfmask_vitb16.py', 'cfmask_siglip2_b16.py', 'context_single_vitb16.py')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Trees of noise: <root>/{train,val}/<3 classes>, PACS' <root>/<4 domains>/<7 classes>, <root>/waterbirds."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    folders = [f'{split}/{name}' for split in ('train', 'val') for name in ('one', 'two', 'three')]
    folders += [
        f'{domain}/{name}'
        for domain in ('photo', 'art_painting', 'cartoon', 'sketch')
        for name in PACSDataset.METAINFO['classes']
    ]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / folder / f'{i}.jpg')
    make_waterbirds(root / 'waterbirds')
    make_domains(root / 'VLCS')
    make_celeba(root / 'celeba', [(b, m, split) for split in (0, 0, 0, 1, 2) for b in (-1, 1) for m in (-1, 1)])
    make_fmow(
        root / 'fmow_v1.1',
        [
            (split, category, f'{year}-01-01T00:00:00Z', 'USA')
            for split, year in [('train', 2010)] * 3 + [('val', 2014), ('test', 2010), ('test', 2016)]
            for category in ('airport', 'zoo')
        ],
    )
    np.save(root / 'embeddings.npy', rng.normal(size=(1000, 16)))
    return root


def shrink(cfg, images, pretrained, work_dir):
    cfg.launcher, cfg.work_dir = 'none', str(work_dir)
    shapes = cfg.model.head.num_classes == 10
    if cfg.model.backbone.type == 'VisionTransformer':
        small = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)
        cfg.model.backbone.update(arch=small, patch_size=32, init_cfg=None)
    else:
        cfg.model.backbone.update(model_name='tiny-vit' if shapes else 'tiny-vit-224', pretrained=pretrained)
    start = cfg.model.head.class_weights
    if start.type == 'file':
        start.path = str(images / 'embeddings.npy')
    else:
        start.cache_dir = str(work_dir / 'cache')
    described = cfg.model.head.get('descriptions')
    if described and described.type == 'file':
        described.path = str(images / 'embeddings.npy')
    if cfg.model.head.num_classes == 62:  # FMoW
        cfg.model.head.num_classes = 2
    if cfg.model.head.num_classes == 1000:
        cfg.model.head.num_classes = 3
        if described:
            described.rows = [[0], [1, 2], [3]]
    if start.type == 'text':
        names = start.classnames if shapes else ['one', 'three', 'two']
        start.update(classnames=names, templates=['a photo of a {}.', 'a sketch of a {}.'])
        if described and described.type == 'text':
            described.cache_dir = str(work_dir / 'cache')
    elif start.type == 'prototype':
        start.per_class = 2
        start.dataset = copy.deepcopy(start.dataset)  # may be that of the training
    elif start.type == 'linear_probe':
        start.strengths = [1e-3, 1e-1]
    for term in cfg.model.get('losses') or ():
        if term.type == 'LipsumFT':
            term.update(num_texts=3)
    loaders = [cfg.get('train_dataloader'), cfg.get('val_dataloader'), *cfg.test_dataloader.values()]
    for loader in filter(None, loaders):
        loader.update(batch_size=16, num_workers=0, pin_memory=False, persistent_workers=False)
    for dataset in [loader.dataset for loader in loaders if loader] + [
        start[key] for key in ('dataset', 'held_out') if key in start
    ]:
        if shapes:
            pack = dict(type='PackInputs', meta_keys=('sample_idx', 'group'))
            dataset.update(size=4, pipeline=[dict(type='Resize', scale=32), pack])
        else:
            dataset.data_root = str(images)
        if dataset.type == 'ObjectsOnWhiteDataset':  # noise is all object
            dataset.update(object_share=(0.0, 1.0), per_class=2)
            if 'scenes' in dataset:
                dataset.update(scenes=str(images / 'val'), scene_folders=['one', 'two'])
        if dataset.type == 'ImageNetDataset':
            dataset.update(type='FolderDataset')
            if 'holdout' in dataset:
                dataset.holdout.size = 6
    if cfg.get('train_cfg'):
        cfg.train_dataloader.batch_size = 2
        # One batch; the dataset of the class means may be the same object.
        cfg.train_dataloader.dataset = dict(cfg.train_dataloader.dataset, indices=2)
        cfg.train_cfg.max_epochs = 1
        cfg.total_batch_size = 2


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name.partition('/')[0] in ALIKE and name.rpartition('/')[2] not in SAMPLE
        else name
        for name in NAMES
    ],
)
def test_config(name, tmp_path, images, tiny_pretrained, tiny_pretrained_224, monkeypatch):
    monkeypatch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **_: (text, True)
    )  # most of the time would go into layout
    cfg = load_config(str(CONFIGS / name), dict(image_size=224) if 'towers' in name else {})
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()

    shrink(cfg, images, tiny_pretrained if 'shapes' in name else tiny_pretrained_224, tmp_path / 'run')
    tests = ['imagenet'] if 'imagenet' in cfg.test_dataloader else list(cfg.test_dataloader)
    if cfg.get('train_cfg'):
        set_gradient_accumulation(cfg, 1)
        build_runner(cfg.copy()).train()
        (checkpoint,) = (tmp_path / 'run').glob('epoch_1.pth')
        parts = check_checkpoint(str(checkpoint), resume=True)['message_hub']['log_scalars']
        losses = ['loss_cls'] if cfg.model.head.get('cls_weight', 1) else []
        losses += [name for term in cfg.model.get('losses') or () for name in LOSSES[term.type].split()]
        assert {key for key in parts if 'loss_' in key} == {f'train/{name}' for name in losses}
        cfg.load_from = str(checkpoint)
        skip_pretrained_weights(cfg.model)
    metrics = build_runner(cfg).test()
    assert {f'{test}/top1' for test in tests} <= set(metrics)


def test_published_variants_are_all_there():
    from mmcfmask.models.preprocessor import PUBLISHED_VALUES

    seen = {('object', 'single'): 0.3}  # cfmask_vitb16.py
    for path in (CONFIGS / 'variants').glob('*.py'):
        preprocessor = Config.fromfile(path).model.data_preprocessor
        seen[preprocessor.mask, preprocessor.fill] = preprocessor.value
    assert seen == PUBLISHED_VALUES


def test_baselines_differ_from_the_recipe_in_their_method_alone():
    """Same data, images per step, epochs and learning rate; what the method itself is about excepted, and the configs
    with the recipe of a method's authors."""
    free = {
        'lp': {'lr', 'weight_decay'},
        'l2sp': {'weight_decay'},
        'spd': {'type', 'weight_decay'},
        'ema': {'custom_hooks'},
        'r': {'custom_hooks', 'lr', 'weight_decay'},  # R-Adapter
        'lpft': {'shared'},
        'dual': {'shared'},
    }
    recipe = Config.fromfile(CONFIGS / 'cfmask_vitb16.py')
    for path in (CONFIGS / 'baselines').glob('*_vitb16.py'):
        name = path.stem.partition('_')[0]
        cfg = Config.fromfile(path)
        if name == 'zeroshot' or '_own_' in path.stem:
            continue
        for key in set(recipe) - {'model', 'optim_wrapper', 'shared'} - free.get(name, set()):
            assert cfg[key] == recipe[key], f'{name}: {key}'
        changed = {
            key for key, value in recipe.optim_wrapper.optimizer.items() if cfg.optim_wrapper.optimizer[key] != value
        }
        assert changed == free.get(name, set()) - {'custom_hooks', 'shared'}, name
        assert not makes_counterfactuals(cfg.model), name


def test_recipe_is_the_published_one():
    cfg = Config.fromfile(CONFIGS / 'cfmask_vitb16.py')
    assert cfg.total_batch_size == 512 and cfg.train_dataloader.batch_size == 64 and cfg.train_cfg.max_epochs == 10
    assert cfg.optim_wrapper.optimizer.pop('fused')  # the same numbers, faster
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), weight_decay=0.1)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert cfg.model.head.distill_weight == 30.0 and cfg.model.head.distill == 'feature'
    held = [loader.dataset.holdout for loader in (cfg.train_dataloader, cfg.val_dataloader)]
    assert (
        [h.size for h in held] == [10240, 10240]
        and [h.part for h in held] == ['train', 'held_out']
        and held[0].seed == held[1].seed
    )


def bases_of(path):
    text = re.search(r'^_base_ = (.*)$', path.read_text(), re.MULTILINE)
    names = ast.literal_eval(text[1]) if text else []
    return [(path.parent / name).resolve() for name in ([names] if isinstance(names, str) else names)]


def depth(path):
    return max((1 + depth(base) for base in bases_of(path)), default=0)


@pytest.mark.parametrize('name', NAMES)
def test_inheritance_is_shallow(name):
    """A config is its file, the base of its data set, and what all share."""
    assert depth(CONFIGS / name) == 2
    assert {base.parent.name for base in bases_of(CONFIGS / name)} == {'_base_'}


@pytest.mark.parametrize('name', ['celeba', 'domainbed', 'imagenet', 'pacs', 'shapes', 'waterbirds', 'wilds'])
def test_bases_are_plain_fine_tuning(name):
    cfg = load_config(str(CONFIGS / '_base_' / f'{name}.py'))
    assert not {'teacher', 'losses', 'knn_gate'} & cfg.model.keys()
    assert cfg.model.data_preprocessor.keys() == {'type', 'mean', 'std', 'to_rgb'}
    assert cfg.model.head.keys() == {'type', 'num_classes', 'class_weights'}
    assert cfg.train_cfg and cfg.val_cfg is not None and cfg.test_cfg


def test_nothing_is_switched_off_by_none():
    """Except for the training of configs that are only tested."""
    for path in CONFIGS.glob('**/*.py'):
        text = path.read_text().replace('load_from = None', '')
        text = (
            re.sub(r'^(\w+ = )+None$', '', text, flags=re.MULTILINE)
            if path.stem.partition('_')[0] in UNTRAINED
            else text
        )
        assert 'None' not in text, path


def test_settings_that_all_share_are_written_once():
    texts = {path: path.read_text() for path in CONFIGS.glob('**/*.py')}
    with_numbers = {path.name for path, text in texts.items() if re.search(r'\b(mean|std)=\[', text)}
    assert with_numbers == {'clip.py', 'cfmask_dinov2_b14.py', 'ft_dinov2_b14.py'}  # mmpretrain's ViT is no CLIP
    for word in ('ResizeCenterCrop', 'LoadImageFromFile'):
        assert {path.name: text.count(word) for path, text in texts.items() if word in text} == {
            'imagenet.py': 1,
            'pacs.py': 1,
            'waterbirds.py': 1,
            'celeba.py': 1,
            'domainbed.py': 1,
            'wilds.py': 1,
        }


METHODS = {
    'ft': {},
    'cfmask': dict(
        teacher=dict(type='OpenCLIPTeacher'),
        losses=[dict(type='CounterfactualDistillation')],
        data_preprocessor=dict(mask='context', fill='multi'),
    ),
    'fd': dict(teacher=dict(type='OpenCLIPTeacher'), losses=[dict(type='Distillation')]),
    'kd': dict(teacher=dict(type='OpenCLIPTeacher'), losses=[dict(type='Distillation')], head=dict(distill='logits')),
    'l2sp': dict(teacher=dict(type='OpenCLIPTeacher'), losses=[dict(type='L2SP')]),
    'flyp': dict(losses=[dict(type='FLYP')], head=dict(cls_weight=0.0)),
    'both': dict(
        teacher=dict(type='OpenCLIPTeacher'), losses=[dict(type='CounterfactualDistillation'), dict(type='L2SP')]
    ),
}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('data', ['imagenet', 'pacs', 'shapes', 'waterbirds'])
def test_method_data_set_and_tower_combine_in_one_short_file(method, data, tmp_path):
    """The base of a data set, and the method and the tower beside it."""
    for tower in ('ViT-B-32-quickgelu', 'ViT-L-14-quickgelu'):
        model = {**METHODS[method], 'backbone': dict(model_name=tower, pretrained='openai')}
        (tmp_path / 'mine.py').write_text(f'_base_ = {str(CONFIGS / "_base_" / f"{data}.py")!r}\nmodel = {model!r}\n')
        cfg = load_config(str(tmp_path / 'mine.py'))
        assert cfg.model.get('losses', []) == METHODS[method].get('losses', [])
        assert cfg.model.backbone.model_name == tower and cfg.model.head.num_classes
        assert cfg.model.data_preprocessor.mean and cfg.model.type == 'CounterfactualClassifier'
        assert makes_counterfactuals(cfg.model) == (method in ('cfmask', 'both'))


def test_large_towers_are_trained_alike():
    ours, plain = (Config.fromfile(CONFIGS / name) for name in ('cfmask_vitl14.py', 'baselines/ft_vitl14.py'))
    assert ours.model.backbone == plain.model.backbone and plain.model.backbone.grad_checkpointing
    assert ours.train_dataloader == plain.train_dataloader and plain.train_dataloader.batch_size == 32


def test_inheritance_from_elsewhere(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        "custom_imports = dict(imports=['mmcfmask'])\n_base_ = 'mmcfmask::cfmask_vitb16.py'\n"
        "model = dict(backbone=dict(model_name='ViT-L-14-336-quickgelu'))\n"
    )
    assert Config.fromfile(child).model.backbone.model_name == 'ViT-L-14-336-quickgelu'
    child.write_text("_base_ = 'mmcfmask::cfmask_vitb61.py'\n")
    with pytest.raises(FileNotFoundError, match='cfmask_vitb61.py.*does not exist; there are: .*cfmask_vitb16.py'):
        Config.fromfile(child)


def readme_configs():
    blocks = re.findall(r'```python\n(_base_.*?)```', (CONFIGS.parent / 'README.md').read_text(), re.DOTALL)
    assert len(blocks) == 3
    return blocks


@pytest.mark.parametrize('index', [0, 1, 2])
def test_examples_of_the_readme_load(index, tmp_path):
    example = tmp_path / 'example.py'
    example.write_text(readme_configs()[index])
    cfg = load_config(str(example), {})
    assert "'_delete_'" not in str(cfg.to_dict())
    if index == 0:
        for dataset in (
            cfg.train_dataloader.dataset,
            cfg.val_dataloader.dataset,
            cfg.model.head.class_weights.dataset,
            *(loader.dataset for loader in cfg.test_dataloader.values()),
        ):
            assert (
                dataset.type == 'FolderDataset'
                and 'domain' not in dataset
                and dataset.pipeline[0]['type'] == 'LoadImageFromFile'
            )
        assert list(cfg.test_dataloader) == ['mine', 'drawings'] and cfg.model.head.class_weights.type == 'prototype'
    else:
        assert cfg.model.teacher.type == 'OpenCLIPTeacher' and cfg.model.losses[0].type == 'CounterfactualDistillation'
