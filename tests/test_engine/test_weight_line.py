"""The line between two weights. Adapters and text towers: test_wise_ft.py and test_explorer/test_towers.py."""

import pytest
import torch
from torch import nn

from mmcfmask.engine.weight_line import WeightLine, own_weights
from mmcfmask.errors import UserError


def test_equals_the_formula():
    model, pretrained = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 2, 3]))
        pretrained.weight.copy_(torch.tensor([5.0, 5, 5]))
    line = WeightLine(model, pretrained.state_dict())
    for alpha, weight in ((0.25, [4.0, 4.25, 4.5]), (0.0, [5.0, 5, 5]), (1.0, [1.0, 2, 3])):
        line.move_to(alpha)
        assert model.weight.tolist() == weight == line.at(alpha)['weight'].tolist()
        assert pretrained.weight.tolist() == [5, 5, 5]


def test_loss_terms_are_left_out():
    model = nn.Linear(2, 2)
    model.losses = nn.ModuleList([nn.Linear(1, 1)])
    assert set(own_weights(model)) == {'weight', 'bias'}
    with pytest.raises(UserError, match='not of the same model: weight has the shapes'):
        WeightLine(model, nn.Linear(3, 2).state_dict())
