"""Running out of memory says which settings help."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from short_runs import config
from torch import nn

from mmcfmask.engine.memory import fixed_memory, memory_explained, save_in_evaluation, save_in_training
from mmcfmask.errors import UserError


@pytest.fixture
def run(tmp_path, tiny_pretrained):
    cfg = config(tmp_path, tiny_pretrained)
    return cfg, MODELS.build(cfg.model)


def test_a_training_that_runs_out_of_memory(run):
    cfg, model = run
    with pytest.raises(UserError) as raised, memory_explained(cfg, model.train(), processes=2):
        torch.empty(2**50)  # 4 PB
    first, intro, *settings = str(raised.value).splitlines()
    assert "can't allocate memory" in first and intro.startswith('What saves memory')
    assert [line.split(':')[0].strip() for line in settings] == [
        '--amp',
        'train_dataloader.batch_size=4',
        'model.backbone.recompute=True',
        'model.backbone.grad_checkpointing=True',
        '--fsdp',
    ]
    assert 'accumulated to the same 8 images per step' in settings[1]


def test_what_is_set_is_not_advised(run):
    cfg, _ = run
    cfg.merge_from_dict(
        {
            'train_dataloader.batch_size': 1,
            'optim_wrapper.type': 'AutocastOptimWrapper',
            'model.backbone.grad_checkpointing': True,
            'model_wrapper_cfg': dict(type='FullyShardedDataParallel'),
        }
    )
    assert save_in_training(cfg, MODELS.build(cfg.model), processes=2) == {}


def test_an_evaluation_that_runs_out_of_memory():
    cfg = Config(
        dict(
            test_dataloader=dict(r=dict(batch_size=256, dataset={}), a=dict(batch_size=1, dataset={})),
            test_cfg={},
            val_dataloader=dict(batch_size=64, dataset={}),
            val_cfg=dict(amp=True),
        )
    )
    assert list(save_in_evaluation(cfg)) == ['--amp', 'test_dataloader.r.batch_size=128']
    assert list(save_in_evaluation(cfg, 'val')) == ['val_dataloader.batch_size=32']
    with pytest.raises(UserError, match='test_dataloader.r.batch_size=128'), memory_explained(cfg, nn.ReLU().eval()):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
    with pytest.raises(RuntimeError, match='^shapes differ$'), memory_explained(cfg, nn.ReLU()):
        raise RuntimeError('shapes differ')


def test_memory_by_counting_tensors(run):
    """Weights, and what a step of AdamW and DDP's buckets hold beside them."""
    cfg, model = run
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    counted = sum(4 * tensor.numel() for tensor in tensors)
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert fixed_memory(model) == counted
    assert fixed_memory(model, 8) == counted + gradients
    assert fixed_memory(model, 8, sharded=True) == counted // 8


def test_adapters_need_no_gradients_of_the_tower(run):
    cfg, model = run
    before = fixed_memory(model)
    cfg.model.backbone.lora = dict(rank=1)
    assert fixed_memory(MODELS.build(cfg.model)) < before / 3
