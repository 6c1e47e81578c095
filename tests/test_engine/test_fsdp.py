"""Runs of sharded models equal those of whole ones."""

from pathlib import Path

import open_clip
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from short_runs import launch
from terms import build
from torch import nn

from mmcfmask.engine.fsdp import check_shardable, find_blocks, prepare_sharding

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import mmcfmask, open_clip
from short_runs import config
from mmcfmask.engine.build import build_runner, set_gradient_accumulation

folder, pretrained, out, method, wrapper, resume = sys.argv[2:]
open_clip.add_model_config(folder)
options = {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.size': 32, 'total_batch_size': 16}
cfg = config(out, pretrained, method.removesuffix('+amp'), **options)
if method.endswith('+amp'):
    cfg.optim_wrapper.type = 'AutocastOptimWrapper'
cfg.launcher = 'pytorch'
cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, momentum=0.9)  # Adam amplifies the rounding of small gradients
cfg.model_wrapper_cfg = None if wrapper == 'ddp' else dict(type='FullyShardedDataParallel')
if resume:
    cfg.resume, cfg.load_from = True, resume
set_gradient_accumulation(cfg, 2)
build_runner(cfg).train()
"""


@pytest.fixture
def run(tmp_path, tiny_towers, tiny_pretrained):
    (tmp_path / 'worker.py').write_text(WORKER)

    def train(name, method, wrapper, resume=''):
        out = tmp_path / name
        arguments = (Path(__file__).parents[1], tiny_towers, tiny_pretrained, out, method, wrapper, resume)
        done = launch(str(tmp_path / 'worker.py'), 2, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(out / 'epoch_2.pth', weights_only=True)

    return train


def flat(values):
    """All tensors of a nested checkpoint as one vector, in float64."""
    if isinstance(values, torch.Tensor):
        assert type(values) is torch.Tensor and values.device.type == 'cpu'  # no part of one
        return values.double().flatten()
    parts = [flat(value) for _, value in sorted(values.items(), key=lambda item: str(item[0]))]
    return torch.cat(parts) if parts else torch.zeros(0)


def assert_same(first, second, start):
    """The weights of two checkpoints differ by less than a thousandth of what training changed, and the optimizers are
    as close."""
    for part in first.keys() & {'state_dict', 'ema_state_dict'}:
        moved = (flat(first[part]) - flat(start[part])).norm()
        assert (flat(first[part]) - flat(second[part])).norm() < 1e-3 * moved
    states = [flat(checkpoint['optimizer']['state']) for checkpoint in (first, second)]
    assert (states[0] - states[1]).norm() < 1e-3 * states[0].norm()


def test_a_sharded_run_equals_ddp_and_resumes(run, tmp_path):
    """With relevance maps, a teacher, accumulated and clipped gradients, and a moving average of the weights."""
    expected, sharded = (run(wrapper, 'cfmask_plus', wrapper) for wrapper in ('ddp', 'fsdp'))
    half = tmp_path / 'fsdp' / 'epoch_1.pth'
    start = torch.load(half, weights_only=True)
    assert expected.keys() == sharded.keys() >= {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'}
    assert_same(expected, sharded, start)
    assert_same(sharded, run('resumed', 'cfmask_plus', 'fsdp', half), start)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['ft', 'lp', 'fd', 'kd', 'cfmask+amp'])
def test_methods_are_those_of_ddp(run, method, tmp_path):
    expected, sharded = (run(wrapper, method, wrapper) for wrapper in ('ddp', 'fsdp'))
    assert_same(expected, sharded, torch.load(tmp_path / 'ddp' / 'epoch_1.pth', weights_only=True))


def test_blocks_of_a_tower():
    visual = open_clip.create_model('tiny-vit').visual
    assert find_blocks(visual) == list(visual.transformer.resblocks)[::-1]
    stages = nn.Sequential(
        *(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(2)),
    )
    tower = nn.ModuleDict(dict(stem=nn.Sequential(nn.Linear(1, 1), nn.ReLU()), stages=stages))
    assert find_blocks(tower) == [stages[1][1], stages[1][0], stages[0][1], stages[0][0], stages[1], stages[0]]


def test_what_cannot_be_sharded_is_refused(tiny_pretrained):
    with pytest.raises(ValueError, match='--fsdp: L2SP reads the weights of whole towers'):
        check_shardable(build(tiny_pretrained, dict(type='L2SP')))
    head = dict(type='CLIPDistillHead', num_classes=3)
    for adapters in dict(lora=dict(rank=2)), dict(r_adapter={}):
        backbone = dict(type='OpenCLIPBackbone', model_name='tiny-vit', **adapters)
        with pytest.raises(ValueError, match='--fsdp: with adapters, student and teacher share'):
            check_shardable(MODELS.build(dict(type='CounterfactualClassifier', backbone=backbone, head=head)))
    cfg = Config(dict(launcher='none', model_wrapper_cfg=dict(type='FullyShardedDataParallel')))
    with pytest.raises(ValueError, match='--fsdp splits a model over several processes: start them with tools/dist'):
        prepare_sharding(cfg)
