"""The models of the explorer."""

import pytest
import torch

from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import UserError
from mmcfmask.explorer.towers import ZERO_SHOT, load_towers, name_checkpoints
from mmcfmask.models.towers.adapters import uses_adapters


def write(path, state, **meta):
    path.parent.mkdir(exist_ok=True)
    torch.save(dict(state_dict=state, meta=meta), path)
    return str(path)


def test_names():
    assert name_checkpoints(['runs/a/best.pth', 'runs/b/best.pth']) == ['a/best', 'b/best']
    assert name_checkpoints(['x/a/best.pth', 'y/a/best.pth']) == ['x/a/best.pth', 'y/a/best.pth']


@pytest.mark.parametrize('name', ['cfmask', 'cfmask_lora', 'flyp'])
def test_line_between_the_weights(tmp_path, name):
    """With adapters, whose weights are few, and with a text tower that makes the head."""
    cfg = load_config(f'configs/shapes/{name}.py')
    torch.manual_seed(0)
    towers = load_towers(cfg, [])
    inputs = torch.randn(2, 3, 64, 64)
    if name == 'flyp':
        from mmpretrain.registry import MODELS

        model = MODELS.build(load_config(f'configs/shapes/{name}.py').model).eval()
    else:
        model = build_model(load_config(f'configs/shapes/{name}.py').model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.train().eval()  # the head of the new text tower
    path = write(tmp_path / 'run' / 'best.pth', model.state_dict())
    towers = load_towers(cfg, [path])
    assert list(towers) == [ZERO_SHOT, 'run/best'] and uses_adapters(cfg.model) == (name == 'cfmask_lora')
    with torch.no_grad():
        start, end, zero = (towers['run/best'].at(alpha)(inputs) for alpha in (0.5, 1.0, 0.0))
        torch.testing.assert_close(end, model(inputs))
        torch.testing.assert_close(zero, towers[ZERO_SHOT].at(1.0)(inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(start, end) and not torch.allclose(start, zero)


def test_mistakes(tmp_path):
    cfg = load_config('configs/shapes/cfmask.py')
    state = build_model(load_config('configs/shapes/cfmask.py').model).state_dict()
    good = write(tmp_path / 'run' / 'best.pth', state)
    other = write(tmp_path / 'other.pth', {**state, 'head.fc.weight': torch.zeros(3, 64)})
    text = "model = dict(backbone=dict(type='OpenCLIPBackbone', model_name='ViT-B-16'))"
    tower = write(tmp_path / 'tower.pth', state, cfg=text)
    (tmp_path / 'text.pth').write_text('no checkpoint')
    for paths, message in (
        ([good, good], 'best.pth is given twice'),
        ([str(tmp_path / 'none.pth')], 'there is no checkpoint .*none.pth'),
        ([str(tmp_path / 'text.pth')], 'text.pth.* is not a checkpoint'),
        ([good, other], 'other.pth'),
        ([tower], 'tower.pth was trained with model.backbone.model_name'),
    ):
        with pytest.raises(UserError, match=message):
            load_towers(cfg, paths)
    with pytest.raises(UserError, match='the image tower would have random weights'):
        load_towers(load_config('configs/shapes/cfmask.py', ['model.backbone.pretrained=None']), [])
    plain = load_config('configs/shapes/cfmask.py')
    plain.model.type = 'ImageClassifier'
    with pytest.raises(UserError, match="needs a CounterfactualClassifier, but model.type='ImageClassifier'"):
        load_towers(plain, [])
