import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from towers import register

from mmcfmask.counterfactual import part_of_grid, patch_mask, relevance_center, relevance_map, zoom_in
from mmcfmask.counterfactual.cleaning import smooth
from mmcfmask.datasets import ShapesDataset
from mmcfmask.engine import counterfactual_images
from mmcfmask.engine.config import load_config
from mmcfmask.engine.counterfactual_images import images_from_files, show_counterfactuals
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import UserError
from mmcfmask.reporting import save_figure

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / 'configs' / 'shapes' / 'cfmask.py')
# A random tower and 12 images per set: nothing is loaded, and little is rendered.
SMALL = [
    'model.backbone.pretrained=None',
    'model.head.class_weights=None',
    'train_dataloader.dataset.size=12',
    'test_dataloader.test.dataset.size=12',
    'test_dataloader.a.dataset.size=12',
]


@pytest.fixture
def show(tmp_path, monkeypatch):
    """Draws a picture in an empty folder; returns the arguments of the figure. ``show.text`` is the description."""
    monkeypatch.chdir(tmp_path)
    drawn = []

    def spy(function):

        def call(*args, **kwargs):
            drawn.append((args, kwargs))
            return function(*args, **kwargs)

        return call

    for name in ('counterfactual_panel', 'variants_panel'):
        monkeypatch.setattr(counterfactual_images, name, spy(getattr(counterfactual_images, name)))

    def run(*images, config=SHAPES, options=SMALL, checkpoint=None, out='counterfactuals.png', pdf=False, **settings):
        torch.manual_seed(0)
        drawn.clear()
        cfg = load_config(config, options)
        figure, run.text = show_counterfactuals(cfg, checkpoint, list(map(str, images)), **settings)
        save_figure(figure, out, pdf)
        return drawn[0][0]

    return run


@pytest.fixture
def photos(tmp_path):
    """Four files of another size than the model's, each of one colour."""
    folder = tmp_path / 'my photos'
    folder.mkdir()
    for i, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]):
        Image.new('RGB', (100, 80), color).save(folder / f'{i}.png')
    return folder


def test_split_is_shown_as_rendered(show):
    images, relevance, mask, refilled, labels, gt_masks, *_ = show(split='test', num=3, seed=5)
    world = ShapesDataset('test', size=12)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    found = [next(i for i in range(12) if np.array_equal(world[i]['img'], shown)) for shown in pixels]
    assert len(set(found)) == 3
    for i, label, truth in zip(found, labels, gt_masks):
        assert label.split('\n')[0] == world.metainfo['classes'][world.get_data_info(i)['gt_label']]
        np.testing.assert_array_equal(truth, world[i]['gt_mask'])
    # Where the mask is not, the counterfactual is the image; where it is, another image of the picture.
    pixel_mask = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(mask, patch_mask(relevance, 'object', 0.3))
    for i in range(3):
        torch.testing.assert_close(refilled[i][:, ~pixel_mask[i]], images[i][:, ~pixel_mask[i]])
        assert any(
            torch.allclose(refilled[i][:, pixel_mask[i]], images[j][:, pixel_mask[i]]) for j in range(3) if j != i
        )
    with Image.open('counterfactuals.png') as picture:
        assert picture.width > 900 and len(np.unique(np.asarray(picture.convert('L')))) > 100
    assert '3 images' in show.text


def test_same_seed_same_picture_and_named_shift(show):
    random = dict(split='a', num=2, mask='random', fill='multi')
    show(**random, out='one.png')
    show(**random, out='two.png', pdf=True)
    assert Path('one.png').read_bytes() == Path('two.png').read_bytes() and Path('two.pdf').is_file()
    show(**random, out='two.png', seed=1)
    assert Path('one.png').read_bytes() != Path('two.png').read_bytes()


def test_seed_decides_random_masks_and_donors(show, photos):
    first, second = (show(photos, mask='random', fill='single', seed=seed) for seed in (1, 2))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[2], second[2])  # the same images, other masks


def test_other_views_and_colours_are_shown(show):
    train = dict(split='train', num=4)
    plain = show(**train)
    assert '4 images' in show.text and 'random views' not in show.text
    augmented = [*SMALL, 'model.data_preprocessor=dict(views=dict(), color_mixing=0.7)']
    plus = show(**train, options=augmented)
    assert ', random views, random color mixing' in show.text
    assert torch.equal(plain[2], plus[2]) and not torch.equal(plain[3], plus[3])  # the same patches, other pictures
    all_ours, all_plus = (
        show(**train, all_variants=True, options=options)[2][1].images for options in (SMALL, augmented)
    )
    assert torch.equal(all_ours, all_plus)
    show(**train, config=SHAPES.replace('cfmask.py', 'fd.py'))
    assert 'the config itself does not train on counterfactual images' in show.text


@pytest.mark.parametrize('name, grid', [('tiny-convnext', (2, 2)), ('tiny-resnet', (2, 2)), ('tiny-map-pool', (3, 3))])
def test_other_families_of_towers_are_shown(show, tmp_path, name, grid):
    """Feature maps of 2 x 2, and patches of 18 pixels, which do not divide 64."""
    register(tmp_path)
    options = [*SMALL, f'model.backbone.model_name={name}']
    images, relevance, mask, _, *_ = show(split='train', num=2, options=options, mask='context')
    assert relevance.shape == mask.shape == (2, *grid) and images.shape[2:] == (64, 64)
    variants = show(split='train', num=2, options=options, all_variants=True)[2]
    assert len(variants) == 9


def test_images_of_a_loss_term_are_shown(show):
    own = "dict(type='ContextInvariance', counterfactual=dict(mask='context', mask_share=0.5, donors='other_class'))"
    train = dict(split='train', num=4)
    mask = show(**train, config=SHAPES.replace('cfmask.py', 'ft.py'), options=[*SMALL, f'model.losses=[{own}]'])[2]
    assert mask.flatten(1).sum(1).tolist() == [32] * 4 and 'context mask, single fill, share 0.5' in show.text
    assert show.text.endswith('donors of other classes')
    mask = show(**train, options=[*SMALL, f"model.losses=[{own}, dict(type='CounterfactualDistillation')]"])[2]
    assert 'object mask, single fill, value 0.3' in show.text
    assert 'of model.data_preprocessor and model.losses[0].counterfactual, here of the first' in show.text


def test_all_nine_variants_with_published_values(show):
    variants = show(split='train', num=2, all_variants=True)[2]
    assert [v[:3] for v in variants] == [
        ('object', 'none', 0.3),
        ('object', 'single', 0.3),
        ('object', 'multi', 0.6),
        ('context', 'none', 0.6),
        ('context', 'single', 0.5),
        ('context', 'multi', 0.3),
        ('random', 'none', 0.75),
        ('random', 'single', 0.5),
        ('random', 'multi', 0.5),
    ]
    assert 'nine' in show.text


def test_another_map_is_shown_beside_the_published_one(show, monkeypatch):
    given = {}
    panel = counterfactual_images.counterfactual_panel
    monkeypatch.setattr(
        counterfactual_images,
        'counterfactual_panel',
        lambda *args, **kwargs: given.update(kwargs) or panel(*args, **kwargs),
    )
    plain = show(split='train', num=3)
    assert given['published'] is None
    better = show(split='train', num=3, options=[*SMALL, "model.data_preprocessor.relevance=dict(smooth='mean')"])
    torch.testing.assert_close(given['published'], plain[1])
    torch.testing.assert_close(better[1], smooth(plain[1], 'mean'))


@pytest.mark.parametrize('swap', [False, True])
def test_image_files_keep_their_colours(show, photos, swap):
    options = [*SMALL, f'model.data_preprocessor.to_rgb={swap}']
    images, _, mask, hidden, labels, gt_masks, _, stages = show(
        photos, photos / '0.png', fill='none', mask='random', labels=['star'], num=4, options=options
    )
    assert images.shape == (4, 3, 64, 64) and gt_masks is None and stages[3] == 'Hidden'
    torch.testing.assert_close(
        images[:, :, 9, 9], torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]), atol=1e-5, rtol=0
    )
    assert all(label.startswith('star') for label in labels)
    assert mask.sum((1, 2)).tolist() == [48] * 4  # of 64 patches int(64 · 0.25) are kept


def test_relevance_is_that_of_the_label(show, photos):
    star = show(photos, num=2, labels=['star'])[1]
    assert torch.equal(star, show(photos, num=2, labels=['3'])[1])
    assert not torch.allclose(star, show(photos, num=2, labels=['ring'])[1])
    cfg = Config.fromfile(SHAPES)
    cfg.merge_from_dict({'model.backbone.pretrained': None, 'model.head.class_weights': None})
    torch.manual_seed(0)
    model = build_model(cfg.model, None, None)
    items = images_from_files(cfg, sorted(photos.iterdir())[:2])
    inputs = model.data_preprocessor(dict(inputs=[item['inputs'] for item in items]))['inputs']
    torch.testing.assert_close(star, relevance_map(model, inputs, torch.tensor([3, 3])))
    labels = show(photos, num=2)[4]  # without labels: what the model predicts
    assert all(re.fullmatch(r'pred\. [a-z]+', label) for label in labels)


def test_folder_set_and_checkpoint(show, photos, tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / 'pets' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (40, 50), (200, 60 * i, 9)).save(tmp_path / 'pets' / name / f'{i}.png')
    config = tmp_path / 'pets.py'
    config.write_text(f"""
custom_imports = dict(imports=['mmcfmask'])
model = dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit'),
    head=dict(type='CLIPDistillHead', num_classes=2),
    teacher=dict(type='OpenCLIPTeacher'),
    data_preprocessor=dict(
        mask='context', fill='multi', value=0.9, mean=[120, 110, 100], std=[60, 60, 60], to_rgb=True))
test_dataloader = dict(dataset=dict(type='FolderDataset', data_root={str(tmp_path / 'pets')!r}, pipeline=[
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=32, edge='short'),
    dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]))
""")
    cfg = Config.fromfile(config)
    model = build_model(cfg.model, None, None)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('cat', 'dog')))), 'model.pth')

    images, relevance, mask, _, labels, *_ = show(checkpoint='model.pth', split='test', config=str(config), options=[])
    assert [label.split('\n')[0] for label in labels] == ['cat', 'cat', 'dog', 'dog']
    torch.testing.assert_close(images[0, :, 5, 5], torch.tensor([200.0, 0, 9]) / 255)
    assert torch.equal(mask, patch_mask(relevance, 'context', 0.9))  # the config's own variant
    inputs = (images * 255 - torch.tensor([120.0, 110, 100])[:, None, None]) / 60
    torch.testing.assert_close(
        relevance, relevance_map(model, inputs, torch.tensor([0, 0, 1, 1])), atol=1e-5, rtol=1e-3
    )
    assert set(show(photos, config=str(config), options=[])[4]) <= {'pred. cat', 'pred. dog'}
    for broken in (dict(other=torch.zeros(1)), {**model.state_dict(), 'head.fc.weight': torch.zeros(3, 16)}):
        torch.save(dict(state_dict=broken), 'other.pth')
        with pytest.raises(UserError, match='other.pth does not fit the model of the config: .*'):
            show(photos, checkpoint='other.pth', config=str(config), options=[])


@pytest.mark.parametrize(
    'images, settings, message',
    [
        ([], dict(split='imagenet'), "unknown --split 'imagenet': the config has train, val, test, v2, r, sketch, a"),
        ([], dict(split='test', num=1), 'at least 2 images, or use --fill none'),
        ([], dict(split='test', value=1.5), r'--value: the threshold of the object mask must lie in \[0, 1\]'),
        (['my photos/0.png'], {}, 'at least 2 images, or use --fill none'),
        (['nothing.jpg', 'my photos/0.png'], {}, 'nothing.jpg: there is no such file or folder'),
        (['text.png', 'my photos'], {}, 'text.png cannot be read as an image'),
        (['empty'], {}, 'empty: there are no images in this folder'),
        (['my photos'], dict(checkpoint='lost.pth'), "there is no checkpoint 'lost.pth'"),
        (['my photos'], dict(checkpoint='text.pth'), 'text.pth. is not a checkpoint'),
        (['my photos'], dict(labels=['unicorn']), "'unicorn' is neither a class name nor an index below 10"),
        (['my photos'], dict(labels=['star', 'ring']), '2 labels for 4 images'),
        ([], dict(split='a', crop_scale=2.0), r'--relevance-crop: .* in \(0, 1\), but it is 2.0'),
    ],
)
def test_clear_errors(show, photos, images, settings, message):
    Path('empty').mkdir()
    for name in ('text.png', 'text.pth'):
        Path(name).write_text('not what it seems')
    with pytest.raises(UserError, match=message):
        show(*images, **settings)
    assert not Path('counterfactuals.png').exists()


def test_relevance_crop(show):
    images, relevance, outside, closer, texts, *_, stages = show(split='a', num=3, crop_scale=0.7)
    assert stages == ('Image', 'Relevance', 'Left out', 'Relevance crop')
    assert show.text == '3 images, relevance crop of scale 0.7, at the relevance of the predicted class'
    center = relevance_center(relevance)
    torch.testing.assert_close(closer, zoom_in(images, center, 0.7), rtol=1e-3, atol=1e-3)
    assert torch.equal(outside, ~part_of_grid(center, 0.7, (8, 8)))
