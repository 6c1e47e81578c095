"""Runs of sharded models equal those of whole ones."""

from pathlib import Path

import open_clip
import pytest
import torch
from forks import launch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from short_runs import config, train
from terms import build
from torch import nn

from mmcfmask.engine.fsdp import check_shardable, find_blocks, prepare_sharding

WORKER = """
import sys
folder, tests, pretrained, out, method, processes, resume = sys.argv[1:]
sys.path[:0] = [tests, f'{tests}/test_engine']
import mmcfmask, open_clip
from test_fsdp import settings
from mmcfmask.engine.build import build_runner, set_gradient_accumulation

open_clip.add_model_config(folder)
cfg = settings(out, pretrained, method.removesuffix('+ddp'))
cfg.launcher = 'pytorch'
cfg.model_wrapper_cfg = None if method.endswith('+ddp') else dict(type='FullyShardedDataParallel')
if resume:
    cfg.resume, cfg.load_from = True, resume
set_gradient_accumulation(cfg, int(processes))
build_runner(cfg).train()
"""


def settings(out, pretrained, method):
    """16 images per optimizer step, 4 at once."""
    options = {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.size': 32, 'total_batch_size': 16}
    cfg = config(out, pretrained, method.removesuffix('+amp'), **options)
    if method.endswith('+amp'):
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
    cfg.optim_wrapper.optimizer = dict(
        type='SGD', lr=0.01, momentum=0.9
    )  # Adam amplifies the rounding of small gradients
    return cfg


@pytest.fixture
def run(tmp_path, tiny_towers, tiny_pretrained):
    (tmp_path / 'worker.py').write_text(WORKER)

    def run(name, method, processes=2, resume=''):
        """The last checkpoint of a training: by FSDP, by DDP (method+ddp), or here if it has one process."""
        out = tmp_path / name
        if processes == 1:
            train(settings(out, tiny_pretrained, method))
        else:
            arguments = (tiny_towers, Path(__file__).parents[1], tiny_pretrained, out, method, processes, resume)
            done = launch(str(tmp_path / 'worker.py'), processes, *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(out / 'epoch_2.pth', weights_only=True)

    return run


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


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sharded_run_equals_one_process(processes, run, tmp_path):
    """With accumulated and clipped gradients and a teacher."""
    expected, sharded = run('whole', 'fd', 1), run('sharded', 'fd', processes)
    start = torch.load(tmp_path / 'whole' / 'epoch_1.pth', weights_only=True)
    assert expected.keys() == sharded.keys() >= {'state_dict', 'optimizer', 'param_schedulers'}
    assert_same(expected, sharded, start)


@pytest.mark.slow
def test_a_sharded_run_equals_ddp_and_resumes(run, tmp_path):
    """With relevance maps, and a moving average of the weights. Donors are those of the same process."""
    expected, sharded = run('ddp', 'cfmask_plus+ddp'), run('fsdp', 'cfmask_plus')
    half = tmp_path / 'fsdp' / 'epoch_1.pth'
    start = torch.load(half, weights_only=True)
    assert expected.keys() == sharded.keys() >= {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'}
    assert_same(expected, sharded, start)
    assert_same(sharded, run('resumed', 'cfmask_plus', resume=half), start)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['ft', 'lp', 'kd', 'cfmask+amp'])
def test_methods_are_those_of_ddp(run, method, tmp_path):
    expected, sharded = run('ddp', f'{method}+ddp'), run('fsdp', method)
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
