import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.counterfactual import patch_mask, random_color_mixing, random_views, refill
from mmcfmask.models.preprocessor import PUBLISHED_VALUES, fill_normalisation

NORM = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)


def build(**kwargs):
    return MODELS.build(dict(type='CAMRefillDataPreprocessor', **kwargs))


def test_does_what_cls_data_preprocessor_does():
    data = dict(
        inputs=torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), data_samples=[DataSample(), DataSample()]
    )
    expected = MODELS.build(dict(type='ClsDataPreprocessor', **NORM))(data, training=True)['inputs']
    assert torch.equal(build(**NORM)(data, training=True)['inputs'], expected)


def test_published_values():
    table = dict(random=(0.75, 0.5, 0.5), object=(0.3, 0.3, 0.6), context=(0.6, 0.5, 0.3))
    for mask, values in table.items():
        for fill, value in zip(('none', 'single', 'multi'), values):
            assert build(mask=mask, fill=fill).value == value == PUBLISHED_VALUES[mask, fill]
    assert build(mask='object', fill='single', value=0.4).value == 0.4


@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['none', 'single', 'multi'])
def test_counterfactual_equals_its_parts(mask, fill):
    images, relevance = torch.randn(4, 3, 16, 16), torch.rand(4, 4, 4)
    module = build(mask=mask, fill=fill)
    result = module.counterfactual(images, (4, 4), relevance, torch.Generator().manual_seed(0))
    assert result.hidden == (fill == 'none')
    if mask == 'random' and fill == 'none':
        assert result.kept == 4 and (~result.mask).flatten(1).sum(1).tolist() == [4] * 4
        return
    generator = torch.Generator().manual_seed(0)
    expected = patch_mask(relevance, mask, module.value, generator)
    assert torch.equal(result.mask, expected) and result.kept is None
    assert torch.equal(result.images, images if fill == 'none' else refill(images, expected, fill, generator))


@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['none', 'single', 'multi'])
def test_a_share_of_the_patches(mask, fill):
    images, relevance = torch.randn(4, 3, 16, 16), torch.rand(4, 4, 4)
    module = build(mask=mask, fill=fill, mask_share=0.4)
    assert module.value is None
    result = module.counterfactual(images, (4, 4), relevance, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    expected = patch_mask(relevance, mask, generator=generator, share=0.4)
    assert torch.equal(result.mask, expected)
    assert (result.kept, result.hidden) == ((10, True) if fill == 'none' else (None, False))
    assert torch.equal(result.images, images if fill == 'none' else refill(images, expected, fill, generator))


@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_donors_of_other_classes(mask, fill):
    images, relevance, labels = torch.randn(5, 3, 16, 16), torch.rand(5, 4, 4), torch.tensor([0, 0, 0, 1, 2])
    module = build(mask=mask, fill=fill, donors='other_class')
    made = module.counterfactual(images, (4, 4), relevance, torch.Generator().manual_seed(0), labels)
    generator = torch.Generator().manual_seed(0)
    expected = patch_mask(relevance, mask, module.value, generator)
    assert torch.equal(made.mask, expected)
    assert torch.equal(made.images, refill(images, expected, fill, generator, labels))
    with pytest.raises(ValueError, match='needs labels'):
        module.counterfactual(images, (4, 4), relevance)


@pytest.mark.parametrize('fill', ['single', 'multi'])
@pytest.mark.parametrize('donors', ['any', 'other_class'])
def test_refilled_again_from_other_donors(fill, donors):
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16)  # every pixel tells its image
    module, labels = build(mask='random', fill=fill, donors=donors), torch.tensor([0, 0, 1, 1, 2, 2])
    made = module.counterfactual(images, (4, 4), None, torch.Generator().manual_seed(0), labels)
    again = module.refill_again(images, made)
    assert torch.equal(again.mask, made.mask)
    masked = made.mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(images)
    assert torch.equal(again.images[~masked], images[~masked])
    for one, two, three in zip(*(pixels[masked].tolist() for pixels in (images, made.images, again.images))):
        assert len({one, two, three}) == 3
        assert donors == 'any' or labels[int(one)] not in (labels[int(two)], labels[int(three)])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(donors='other'), "unknown donors 'other': choose from any, other_class"),
        (dict(donors='other_class', fill='none'), "donors='other_class' fill patches, but fill='none'"),
        (dict(mask='objects'), "unknown mask 'objects': choose from object, context, random"),
        (dict(fill='double'), "unknown fill 'double': choose from none, single, multi"),
        (dict(value=1.5), r'threshold of the object mask must lie in \[0, 1\], but is 1.5'),
        (dict(mask='random', value=-0.5), 'probability of the random mask'),
        (
            dict(mask=None),
            r"data_preprocessor.mask=None is no longer needed: .* model.losses=\[dict\(type='Distillation'\)\]",
        ),
        (dict(relevance='attention'), "data_preprocessor.relevance='attention' is now a dict of options"),
        (dict(value=0.3, mask_share=0.4), 'value=0.3 and mask_share=0.4: set one of them'),
        (dict(mask_share=1.5), 'share of patches that the object mask takes out must lie in'),
        (dict(colors=0.5), 'data_preprocessor.colors is now color_mixing'),
        (dict(batch_augments=dict(augments=dict(type='Mixup', alpha=0.2))), 'batch_augments'),
        (dict(mean='pretrained', std='pretrained'), 'or "pretrained" in a CounterfactualClassifier'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_views_and_colors_are_of_the_refilled_image():
    images, relevance = torch.randn(4, 3, 8, 8), torch.rand(4, 2, 2)
    plain, module = build(), build(views=dict(rotation=10.0), color_mixing=0.9)
    made = module.counterfactual(images, (2, 2), relevance, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    refilled = plain.counterfactual(images, (2, 2), relevance, generator)
    expected = random_views(random_color_mixing(refilled.images, 0.9, generator), rotation=10.0, generator=generator)
    torch.testing.assert_close(made.images, expected)
    assert torch.equal(made.mask, refilled.mask) and not torch.allclose(made.images, refilled.images)


@pytest.mark.parametrize('option', [dict(views={}), dict(color_mixing=0.5)])
def test_views_and_colors_need_a_fill(option):
    with pytest.raises(ValueError, match='change refilled images'):
        build(**option, fill='none')


@pytest.mark.parametrize('option', [dict(views=dict(zoom=0.1)), dict(color_mixing=2.0)])
def test_views_and_colors_out_of_range(option):
    with pytest.raises(ValueError, match='zoom|color_mixing'):
        build(**option)


def test_only_towers_of_open_clip_say_how_their_weights_were_trained():
    options = dict(mean='pretrained', std=[1.0, 2.0, 3.0])
    tower = dict(model_name='ViT-B-16-SigLIP2', pretrained='webli')
    assert fill_normalisation(options, tower) == dict(mean=[127.5] * 3, std=[1.0, 2.0, 3.0])
    assert options['mean'] == 'pretrained'
    with pytest.raises(ValueError, match="mean='pretrained' is for towers of open_clip.* give three numbers"):
        fill_normalisation(options, dict(type='VisionTransformer'))
