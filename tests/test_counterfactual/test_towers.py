"""Relevance, grids and hidden patches of every family of towers, against explicit slow definitions."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from towers import build, register

from mmcfmask.counterfactual import hide_patches, logits_and_relevance, patch_grid, tower_layout
from mmcfmask.counterfactual.reference import explicit_attention, explicit_grad_cam, explicit_recursion
from mmcfmask.errors import ConfigError

TOKENS = {
    'EVA02': ('timm', 'eva02_base_patch16_clip_224', {}, ('class token', 1)),
    'relative positions': ('timm', 'vit_relpos_medium_patch16_cls_224', {}, ('class token', 1)),
    'registers': ('timm', 'vit_small_patch14_reg4_dinov2', {}, ('class token', 5)),
    'distilled DeiT': ('mmpretrain', 'DistilledVisionTransformer', {}, ('class token', 2)),
    'EVA02 of mmpretrain': ('mmpretrain', 'ViTEVA02', {}, ('class token', 1)),
    'CoCa': ('open_clip', 'tiny-coca', {}, ('attention pool', 1)),
    'PE-Core': ('timm', 'vit_pe_core_base_patch16_224', {}, ('attention pool', 1)),
    'SigLIP': ('timm', 'vit_base_patch16_siglip_224', {}, ('attention pool', 0)),
    'pool of patches alone': (
        'timm',
        'vit_base_patch16_224',
        dict(global_pool='map', reg_tokens=2),
        ('attention pool', 3),
    ),
    'NaFlex': ('timm', 'naflexvit_base_patch16_siglip', {}, ('attention pool', 0)),
    'CLIPA': ('open_clip', 'tiny-clipa', {}, ('mean of tokens', 1)),
    'mean after the last norm': ('open_clip', 'tiny-mean', {}, ('mean of tokens', 1)),
    'mean of timm': ('timm', 'vit_medium_patch16_gap_256', {}, ('mean of tokens', 0)),
    'mean of all tokens': (
        'timm',
        'vit_base_patch16_224',
        dict(global_pool='avg', pool_include_prefix=True),
        ('mean of tokens', 1),
    ),
    'mean of mmpretrain': ('mmpretrain', 'VisionTransformer', dict(out_type='avg_featmap'), ('mean of tokens', 1)),
    'BEiT': (
        'mmpretrain',
        'BEiTViT',
        dict(use_rel_pos_bias=True, use_abs_pos_emb=False),
        ('mean of tokens', 1),
    ),
}


@pytest.fixture(scope='module', autouse=True)
def configs(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


def features(tower, images):
    output = tower(images)
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output if output.ndim == 2 else output.mean(dim=(2, 3))


def classifier(tower):
    torch.manual_seed(2)
    width = features(tower, torch.zeros(1, 3, *image_size(tower), dtype=torch.float64)).shape[1]
    weights = F.normalize(torch.randn(width, 5, dtype=torch.float64), dim=0)
    return lambda images: 20 * F.normalize(features(tower, images), dim=1) @ weights


def image_size(tower):
    return getattr(tower, 'image_size', (32, 32))


def batch(tower):
    torch.manual_seed(3)
    return torch.randn(3, 3, *image_size(tower), dtype=torch.float64), torch.tensor([0, 3, 1])


def assert_same(relevance, expected):
    assert relevance.dtype == torch.float32 and relevance.shape == expected.shape
    for got, want in zip(relevance.double(), expected):
        assert want.max() > 1.2 * want.min() and want.max() > 0  # not a flat map
        assert (got - want).norm() < 1e-6 * want.norm()


def explicit(tower, classify, images, labels, monkeypatch):
    """Explicit relevance (B, n) of a tower of tokens."""
    attentions = []
    attend, softmax = explicit_attention(attentions), torch.Tensor.softmax

    def recorded(scores, dim):
        attentions.append(softmax(scores, dim))
        return attentions[-1]

    layout = tower_layout(tower, images)
    with monkeypatch.context() as patch:
        patch.setattr(F, 'scaled_dot_product_attention', attend)
        for module in tower.modules():
            if 'scaled_dot_product_attention' in vars(module):
                patch.setattr(module, 'scaled_dot_product_attention', attend)
        if layout.written_out:
            patch.setattr(torch.Tensor, 'softmax', recorded)
        score = classify(images).gather(1, labels[:, None]).sum()
        return explicit_recursion(score, attentions, layout.pooling, layout.prefix, layout.first_pooled)


@pytest.mark.parametrize('family', TOKENS)
def test_relevance_is_that_of_explicit_attention(family, monkeypatch):
    kind, name, options, (pooling, prefix) = TOKENS[family]
    tower = build(kind, name, **options)
    classify, (images, labels) = classifier(tower), batch(tower)
    layout = tower_layout(tower, images)
    assert (layout.grid, layout.pooling, layout.prefix) == ((4, 4), pooling, prefix)
    assert layout.written_out == (name in ('BEiTViT', 'ViTEVA02'))
    assert layout.first_pooled == (0 if 'pool_include_prefix' in options else prefix)
    expected = explicit(tower, classify, images, labels, monkeypatch).unflatten(1, (4, 4))
    for frozen in (False, True):
        relevance = logits_and_relevance(tower.requires_grad_(not frozen), classify, images, labels)[1]
        assert_same(relevance, expected)


def test_resnets_of_clip_have_the_map_of_their_pool(monkeypatch):
    tower = build('open_clip', 'tiny-resnet')
    classify, (images, labels) = classifier(tower), batch(tower)
    expected = explicit(tower, classify, images, labels, monkeypatch).unflatten(1, (2, 2))
    assert patch_grid(tower, images) == (2, 2)
    assert_same(logits_and_relevance(tower, classify, images, labels)[1], expected)
    assert_same(logits_and_relevance(tower, classify, images, labels, layers='last')[1], expected)


MAPS = {  # the module that returns the last feature map, and its grid
    'tiny-resnet': ('open_clip', {}, 'visual.layer4', (2, 2)),
    'tiny-convnext': ('open_clip', {}, 'visual.trunk.stages', (2, 2)),
    'tiny-swin': ('open_clip', {}, 'visual.trunk.norm', (8, 8)),
    'tiny-fastvit': ('open_clip', {}, 'visual.trunk.final_conv', (2, 2)),
    'ResNet': ('mmpretrain', dict(depth=18, base_channels=8), 'layer4', (2, 2)),
    'ConvNeXt': ('mmpretrain', dict(arch='atto'), 'stages.3', (2, 2)),
    'SwinTransformer': (
        'mmpretrain',
        dict(arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4), img_size=64, patch_size=2, window_size=4),
        '',
        (4, 4),
    ),
}


@pytest.mark.parametrize('name', MAPS)
def test_feature_maps_have_grad_cam(name):
    kind, options, module, grid = MAPS[name]
    tower = build(kind, name, **options)
    tower.image_size = getattr(tower, 'image_size', (64, 64))
    classify, (images, labels) = classifier(tower), batch(tower)
    maps = []

    def keep(_, args, output):
        maps.append(output[-1] if isinstance(output, tuple) else output)

    handle = tower.get_submodule(module).register_forward_hook(keep)
    score = classify(images).gather(1, labels[:, None]).sum()
    handle.remove()
    pair = maps[0].detach(), torch.autograd.grad(score, maps[0])[0]
    if name == 'tiny-swin':
        pair = [x.movedim(-1, 1) for x in pair]
    expected = explicit_grad_cam(*pair)
    assert patch_grid(tower, images) == expected.shape[1:] == grid
    assert expected.amax() > 0
    for frozen in (False, True):
        tower.requires_grad_(not frozen)
        layers = 'feature_map' if name == 'tiny-resnet' else 'all'
        relevance = logits_and_relevance(tower, classify, images, labels, layers=layers)[1]
        torch.testing.assert_close(relevance.double(), expected, rtol=1e-6, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize('family', TOKENS)
def test_hidden_patches_have_no_say(family):
    kind, name, options, _ = TOKENS[family]
    tower = build(kind, name, **options)
    images, _ = batch(tower)
    hidden = torch.zeros(3, 4, 4, dtype=torch.bool)
    hidden[:, 1, 2] = hidden[:, 3, 0] = True
    other = images.clone()
    other[:, :, 8:16, 16:24], other[:, :, 24:, :8] = 2.0, -2.0
    seen = []
    for num_kept in (None, 14):  # keys are masked; tokens are dropped where the tower allows it
        for batch_ in (images, other):
            with torch.no_grad(), hide_patches(tower, batch_, hidden.flatten(1), num_kept):
                seen.append(features(tower, batch_))
    for found in seen[1:]:
        torch.testing.assert_close(found, seen[0])
    with torch.no_grad():
        assert (features(tower, images) - seen[0]).abs().max() > 1e-5


def test_a_mean_of_a_map_keeps_its_shape():
    """mmpretrain gives the tokens as a map, which needs all of them, for a neck to pool."""
    tower = build('mmpretrain', 'VisionTransformer', out_type='featmap')
    images, _ = batch(tower)
    hidden = torch.rand(3, 16).argsort(dim=1) < 5
    mean = build('mmpretrain', 'VisionTransformer', out_type='avg_featmap')
    mean.load_state_dict(tower.state_dict(), strict=False)
    mean.ln2 = torch.nn.Identity()
    seen = []
    for model in (tower, mean):
        with torch.no_grad(), hide_patches(model, images, hidden, 11):
            seen.append(features(model, images))
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize('family', ['SigLIP', 'pool of patches alone', 'CLIPA', 'BEiT'])
def test_an_image_without_a_patch_is_left_whole(family):
    kind, name, options, _ = TOKENS[family]
    tower = build(kind, name, **options)
    images, _ = batch(tower)
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[1] = True
    with torch.no_grad(), hide_patches(tower, images, hidden):
        found = features(tower, images)
    torch.testing.assert_close(found, features(tower, images))


@pytest.mark.parametrize('name', ['tiny-resnet', 'tiny-convnext'])
def test_nothing_can_be_hidden_from_convolutions(name):
    tower = build('open_clip', name)
    images, _ = batch(tower)
    hiding = hide_patches(tower, images, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r'fill="none" hides patches, but .* is no plain transformer'):
        hiding.__enter__()


def test_towers_that_fit_no_definition_are_named():
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(ConfigError, match="VisionTransformer pools its tokens by 'max'"):
        patch_grid(build('timm', 'vit_base_patch16_224', global_pool='max'), images)
    with pytest.raises(ConfigError, match='XCiT has neither tokens of equal number in all layers nor a feature map'):
        tower = build('mmpretrain', 'XCiT', depth=2, embed_dims=32, num_heads=4, patch_size=8).float()
        patch_grid(tower, images.float())


def test_layout_is_found_once_and_leaves_nothing_behind(monkeypatch):
    tower = build('open_clip', 'tiny-fastvit').train()
    tower.visual.trunk.stages[0].eval()
    images, _ = batch(tower)
    modes, state = [module.training for module in tower.modules()], {**tower.state_dict()}
    before = {name: value.clone() for name, value in state.items()}
    layout = tower_layout(tower, images)
    assert [module.training for module in tower.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert all(not module._forward_hooks for module in tower.modules())
    monkeypatch.setattr(type(tower), 'forward', None)
    assert tower_layout(tower, images[:1]) is layout
    gone = weakref.ref(tower)
    del tower, modes, state
    gc.collect()
    assert gone() is None


def test_grid_follows_the_size_of_the_images():
    tower = build('mmpretrain', 'ResNet', depth=18, base_channels=8)
    assert [patch_grid(tower, torch.zeros(1, 3, *size).double()) for size in [(64, 96), (70, 33)]] == [(2, 3), (3, 2)]


def test_grad_cam_needs_a_feature_map():
    tower = build('open_clip', 'tiny-mean')
    with pytest.raises(ConfigError, match="layers='feature_map' needs a tower that ends in one"):
        logits_and_relevance(tower, classifier(tower), *batch(tower), layers='feature_map')
