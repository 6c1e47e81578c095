import json
from pathlib import Path

import open_clip
import pytest
import torch
from forks import run_script
from mmpretrain.models.classifiers import ImageClassifier

from mmcfmask.models import OpenCLIPBackbone
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain

TOOL = Path(__file__).parents[3] / 'tools' / 'convert_open_clip.py'


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
def test_both_towers_give_the_same_features(name, tiny_pretrained):
    ours = OpenCLIPBackbone(name, tiny_pretrained).eval()
    with torch.no_grad():  # biases and norms of a fresh model are 0 and 1, and would hide a mistake
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = ImageClassifier(**mmpretrain_config(name)).eval()
    theirs.load_state_dict(open_clip_to_mmpretrain(ours.state_dict()))
    # Small inputs: there the epsilon of a LayerNorm counts.
    for scale in (1, 1e-3):
        images = scale * torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            expected, converted = ours(images)[-1], theirs.extract_feat(images)[-1]
        torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-5)


def test_the_two_activations_differ(tiny_pretrained):
    """So the test above tells them apart."""
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        gelu, quick = (
            OpenCLIPBackbone(name, tiny_pretrained).eval()(images)[0] for name in ('tiny-vit', 'tiny-vit-quickgelu')
        )
    assert (gelu - quick).abs().max() > 1e-3


def test_norms_have_open_clips_epsilon():
    model = ImageClassifier(**mmpretrain_config('tiny-vit'))
    theirs = {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    ours = {module.eps for module in OpenCLIPBackbone('tiny-vit').modules() if isinstance(module, torch.nn.LayerNorm)}
    assert theirs == ours == {1e-5}


def test_keys_with_and_without_prefix(tiny_pretrained):
    state = torch.load(tiny_pretrained, weights_only=True)
    with_prefix = open_clip_to_mmpretrain(state)
    without = open_clip_to_mmpretrain({key[7:]: value for key, value in state.items() if key.startswith('visual.')})
    assert with_prefix.keys() == without.keys()
    assert with_prefix['backbone.cls_token'].shape == (1, 1, 32)


def test_published_towers():
    for name, layers, quick in [('ViT-B-16-quickgelu', 12, True), ('ViT-B-32', 12, False), ('ViT-L-14-336', 24, False)]:
        backbone = mmpretrain_config(name)['backbone']
        assert backbone['arch']['num_layers'] == layers
        assert ('Quick' in backbone['layer_cfgs']['act_cfg']['type']) is quick
    assert 'Quick' in mmpretrain_config('ViT-B-16', 'openai')['backbone']['layer_cfgs']['act_cfg']['type']


def test_towers_without_a_counterpart():
    with pytest.raises(ValueError, match='coca_ViT-B-32.*attentional_pool'):
        mmpretrain_config('coca_ViT-B-32')
    with pytest.raises(ValueError, match='RN50'):
        mmpretrain_config('RN50')
    with pytest.raises(ValueError, match='timm_model_name'):
        mmpretrain_config('ViT-B-16-SigLIP')
    with pytest.raises(ValueError, match='attn_pool.query'):
        open_clip_to_mmpretrain({'visual.attn_pool.query': torch.zeros(1)})


def test_tool(tmp_path, tiny_pretrained):
    """The tool knows open_clip's names only, so the tiny weights come as a local folder of open_clip."""
    model = open_clip.create_model('ShapesCLIP-ViT-8-64')
    torch.save(model.state_dict(), tmp_path / 'weights.pt')
    out = tmp_path / 'new' / 'converted.pth'
    run = run_script(TOOL, 'ShapesCLIP-ViT-8-64', tmp_path / 'weights.pt', out)
    assert run.returncode == 0, run.stderr
    config = json.loads(run.stdout[run.stdout.index('{') :])
    classifier = ImageClassifier(**config).eval()
    classifier.load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            classifier.extract_feat(images)[-1], model.eval().encode_image(images), rtol=1e-5, atol=1e-5
        )
