"""The plain method against open_clip's own tower, and against loops over patches."""

import open_clip
import pytest
import torch

from mmcfmask.counterfactual import multi_donors, patch_mask, refill, single_donors
from mmcfmask.counterfactual.reference import explicit_features, explicit_mask, explicit_refill


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
def test_features_are_those_of_open_clip(tiny_pretrained, name):
    torch.manual_seed(0)
    visual = open_clip.create_model(name).visual.double().eval()
    images, attentions = torch.randn(3, 3, 32, 32, dtype=torch.float64), []
    torch.testing.assert_close(explicit_features(visual, images, attentions), visual(images))
    assert [attention.shape for attention in attentions] == [
        (3, visual.transformer.resblocks[0].attn.num_heads, 17, 17)
    ] * 3
    for attention in attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))


def test_hidden_and_dropped_patches_have_no_say(tiny_pretrained):
    torch.manual_seed(0)
    visual = open_clip.create_model('tiny-vit').visual.double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, 1, 2] = hidden[:, 3, 0] = True
    kept = (~hidden).flatten(1).nonzero()[:, 1].view(2, 14)
    other = images.clone()
    other[:, :, 8:16, 16:24], other[:, :, 24:, :8] = 9.0, -9.0
    features = explicit_features(visual, images, hidden=hidden)
    torch.testing.assert_close(explicit_features(visual, other, hidden=hidden), features)
    torch.testing.assert_close(explicit_features(visual, images, kept=kept), features)
    assert (explicit_features(visual, images) - features).abs().max() > 1e-4


@pytest.mark.parametrize('kind', ['object', 'context'])
def test_masks_are_those_of_the_fast_code(kind):
    relevance = torch.rand(5, 4, 4)
    assert torch.equal(explicit_mask(relevance, kind, 0.3), patch_mask(relevance, kind, 0.3))
    assert explicit_mask(torch.tensor([[[1.0, 0.29], [0.31, 0.0]]]), 'object', 0.3).tolist() == [
        [[True, False], [True, False]]
    ]


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_refilled_images_are_those_of_a_loop_and_of_the_fast_code(fill):
    images, mask = torch.rand(4, 3, 12, 16), torch.rand(4, 3, 4) < 0.5
    torch.manual_seed(1)
    donors = single_donors(4)[:, None, None].expand(4, 3, 4) if fill == 'single' else multi_donors((4, 3, 4))
    expected = images.clone()
    for image, row, col in mask.nonzero().tolist():
        patch = slice(4 * row, 4 * row + 4), slice(4 * col, 4 * col + 4)
        expected[(image, slice(None), *patch)] = images[(donors[image, row, col], slice(None), *patch)]
    assert torch.equal(explicit_refill(images, mask, donors), expected)
    torch.manual_seed(1)
    assert torch.equal(refill(images, mask, fill), expected)
