import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mmcfmask.reporting import Variant, counterfactual_panel, grey_out_patches, save_figure, variants_panel
from mmcfmask.reporting.stages import MASK_COLOR


@pytest.fixture
def sample():
    images = torch.rand(3, 3, 32, 32)
    relevance = torch.rand(3, 4, 4)
    mask = relevance > 0.5
    return images, relevance, mask, images.flip(0)


def cells(figure):
    """The axes that show images, without the colour bar."""
    return [axes for axes in figure.axes if axes.images]


def test_grey_out_patches_against_a_loop(sample):
    images, _, mask, _ = sample
    hidden = grey_out_patches(images, mask, grey=0.25)
    for i, y, x in np.ndindex(3, 32, 32):
        expected = np.full(3, 0.25) if mask[i, y // 8, x // 8] else images[i, :, y, x].numpy()
        np.testing.assert_allclose(hidden[i, :, y, x], expected)


def test_grey_patches_of_unequal_sizes(sample):
    mask = np.random.default_rng(0).random((3, 5, 3)) < 0.5
    hidden = grey_out_patches(sample[0], mask, grey=2.0)[:, 0] == 2
    for i, y, x in np.ndindex(3, 32, 32):
        assert hidden[i, y, x] == mask[i, int(y * 5 / 32), int(x * 3 / 32)]


@pytest.mark.parametrize('layout', ['rows', 'columns'])
def test_panel_shows_each_stage_of_each_image(sample, layout):
    images, relevance, mask, refilled = sample
    figure = counterfactual_panel(
        images, relevance, mask, refilled, labels=['a', 'b\npredicted: c', 'd'], layout=layout
    )
    assert len(cells(figure)) == 12 and len(figure.axes) == 13
    for i in range(3):
        original, heat, masked, counterfactual = cells(figure)[4 * i : 4 * i + 4]
        np.testing.assert_allclose(original.images[0].get_array(), images[i].permute(1, 2, 0))
        np.testing.assert_allclose(heat.images[1].get_array(), relevance[i] / relevance[i].max(), rtol=1e-5)
        tint = masked.images[1].get_array()
        np.testing.assert_array_equal(tint[..., 3] > 0, mask[i])
        np.testing.assert_allclose(tint[0, 0, :3], matplotlib.colors.to_rgb(MASK_COLOR))
        np.testing.assert_allclose(counterfactual.images[0].get_array(), refilled[i].permute(1, 2, 0))
    texts = {text.get_text() for text in figure.texts}
    assert texts >= {'a', 'b\npredicted: c', 'd', 'Image', 'Relevance', 'Mask', 'Counterfactual'}
    # Stages go along the other direction than images.
    boxes = [axes.get_position() for axes in cells(figure)[:5]]
    assert (boxes[1].x0 > boxes[0].x0) == (layout == 'rows') and (boxes[4].y0 < boxes[0].y0) == (layout == 'rows')


@pytest.mark.parametrize('layout', ['rows', 'columns'])
def test_no_text_leaves_the_figure(sample, layout):
    figure = counterfactual_panel(*sample, labels=['a long class name\npredicted: another'] * 3, layout=layout, width=6)
    for text in figure.texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


def test_labels_above_columns_do_not_meet(sample):
    labels = ['pred. a long class name', 'pred. a longer class name', 'pred. short']
    figure = counterfactual_panel(*sample, labels=labels, layout='columns')
    boxes = [next(text for text in figure.texts if text.get_text() == label).get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


def test_heading_wider_than_its_column_fits():
    figure = counterfactual_panel(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    heading = next(text for text in figure.texts if text.get_text() == 'Counterfactual')
    assert heading.get_window_extent().x1 <= figure.bbox.x1


def test_without_fill_masked_patches_are_grey(sample):
    images, relevance, mask, _ = sample
    shown = cells(counterfactual_panel(images, relevance, mask))[3].images[0].get_array()
    np.testing.assert_allclose(shown, grey_out_patches(images, mask)[0].transpose(1, 2, 0))


@pytest.mark.parametrize('layout', ['rows', 'columns'])
def test_published_map_stands_beside_another(sample, layout):
    images, relevance, mask, refilled = sample
    other = torch.rand(3, 4, 4)
    figure = counterfactual_panel(images, relevance, mask, refilled, published=other, layout=layout)
    assert len(cells(figure)) == 15
    for i in range(3):
        _, first, second, masked, counterfactual = cells(figure)[5 * i : 5 * i + 5]
        np.testing.assert_allclose(first.images[1].get_array(), other[i] / other[i].max(), rtol=1e-5)
        np.testing.assert_allclose(second.images[1].get_array(), relevance[i] / relevance[i].max(), rtol=1e-5)
        np.testing.assert_array_equal(masked.images[1].get_array()[..., 3] > 0, mask[i])
        np.testing.assert_allclose(counterfactual.images[0].get_array(), refilled[i].permute(1, 2, 0))
    texts = [text.get_text() for text in figure.texts]
    assert texts.index('Published') == texts.index('Relevance') - 1
    for text in figure.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1


def test_outline_of_the_object_is_drawn(sample):
    truth = np.zeros((3, 32, 32), bool)
    truth[:2, 8:24, 8:24] = True  # the third image has no object to outline
    plain = [len(axes.collections) for axes in cells(counterfactual_panel(*sample))]
    outlined = [len(axes.collections) for axes in cells(counterfactual_panel(*sample, gt_masks=truth))]
    assert np.subtract(outlined, plain).tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_images_keep_their_shape():
    images = torch.rand(2, 3, 16, 32)
    figure = counterfactual_panel(images, torch.rand(2, 2, 4), torch.rand(2, 2, 4) > 0.5)
    box = cells(figure)[0].get_window_extent()
    assert box.width / box.height == pytest.approx(2)


def test_variants_panel(sample):
    images, relevance, _, refilled = sample
    variants = [
        Variant(kind, fill, 0.25, refilled)
        for kind in ('object', 'context', 'random')
        for fill in ('none', 'single', 'multi')
    ]
    figure = variants_panel(images, relevance, variants, labels='abc')
    assert len(cells(figure)) == 3 * 11 and len(figure.axes) == 34
    np.testing.assert_allclose(cells(figure)[10].images[0].get_array(), refilled[0].permute(1, 2, 0))
    texts = [text.get_text() for text in figure.texts]
    assert {'Object mask', 'Context mask', 'Random mask', 'Image', 'Relevance'} <= set(texts)
    assert texts.count('single (0.25)') == 3


def test_bad_shapes_are_named(sample):
    images, relevance, mask, refilled = sample
    for change, message in [
        (dict(images=images[0]), 'images has the shape'),
        (dict(images=(images * 255).byte()), 'divide by 255'),
        (dict(relevance=relevance[:2]), 'relevance has the shape'),
        (dict(mask=mask[:, :2]), 'mask has the shape'),
        (dict(counterfactuals=refilled[:2]), 'counterfactuals has the shape'),
        (dict(labels=['a']), '1 labels for 3 images'),
        (dict(gt_masks=np.zeros((3, 4, 4), bool)), 'gt_masks has the shape'),
        (dict(published=relevance[:1]), 'published has the shape'),
        (dict(layout='grid'), 'layout'),
        (dict(width=0.2), 'too little'),
    ]:
        arguments = {**dict(images=images, relevance=relevance, mask=mask, counterfactuals=refilled), **change}
        with pytest.raises(ValueError, match=message):
            counterfactual_panel(**arguments)
    with pytest.raises(ValueError, match='empty'):
        variants_panel(images, relevance, [])


def test_files_are_written(sample, tmp_path):
    figure = counterfactual_panel(*sample)
    path = tmp_path / 'new folder' / 'panel.png'
    assert save_figure(figure, path, pdf=True) == [path, path.with_suffix('.pdf')]
    with Image.open(path) as image:
        assert image.width == pytest.approx(3.4 * 300, abs=2)
        assert len(np.unique(np.asarray(image.convert('L')))) > 50
    assert path.with_suffix('.pdf').read_bytes().startswith(b'%PDF')
    first = path.read_bytes()
    save_figure(counterfactual_panel(*sample), path)
    assert path.read_bytes() == first  # equal input, equal file
    with pytest.raises(ValueError, match=r"must end in '\.png'"):
        save_figure(figure, tmp_path / 'panel.jpeg')


def test_the_users_matplotlib_is_left_alone(tmp_path):
    code = f"""
import sys, matplotlib
matplotlib.use('svg')
matplotlib.rcParams['font.size'] = 23
import torch
from mmcfmask.reporting import counterfactual_panel, id_ood_scatter, save_figure
images, relevance = torch.rand(2, 3, 8, 8), torch.rand(2, 2, 2)
save_figure(counterfactual_panel(images, relevance, relevance > .5), {str(tmp_path / 'a.png')!r})
save_figure(id_ood_scatter({{'FT': (80, 60)}}), {str(tmp_path / 'b.png')!r})
assert 'matplotlib.pyplot' not in sys.modules or not matplotlib.pyplot.get_fignums()
assert matplotlib.get_backend().lower() == 'svg' and matplotlib.rcParams['font.size'] == 23
"""
    subprocess.run([sys.executable, '-c', code], check=True)
    assert (tmp_path / 'a.png').stat().st_size > 3000 and (tmp_path / 'b.png').stat().st_size > 3000
