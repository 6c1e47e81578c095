"""Models beyond the memory of one GPU: torch's ``fully_shard`` (FSDP2) in mmengine's Runner.

Every process keeps a part of each parameter, of its gradient and of the optimizer's state, and gathers the parameters
of one block when the block needs them. Checkpoints hold whole tensors, as those of one process do.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import ConfigError
from ..models.towers.adapters import has_adapters
from .values import is_a


@MODEL_WRAPPERS.register_module()
class FullyShardedDataParallel:
    """Shards a :class:`mmcfmask.models.CounterfactualClassifier` over all processes, in place, and stands for it:
    ``model_wrapper_cfg=dict(type='FullyShardedDataParallel')`` gives the model itself.

    ``module`` is the model on the device of this process; the weights of the first process count. ``copied=True`` lets
    it be deep-copied, once, for a moving average of the weights.

    Raises:
        ConfigError: A part of the model that reads whole weights outside of a forward pass.
    """

    def __new__(cls, module: nn.Module, copied: bool = False) -> nn.Module:  # type: ignore[misc]
        check_shardable(module)
        module.init_weights()
        if module.teacher is not None:
            module.teacher.exact = True  # its parts cannot be rounded
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)  # random weights may differ
        mesh = init_device_mesh(next(module.parameters()).device.type, (get_world_size(),))
        copy = deepcopy(module) if copied else None
        shard(module, mesh)
        if copy is not None:  # torch refuses to copy a sharded model
            shard(copy, mesh)
            object.__setattr__(module, '__deepcopy__', lambda memo: copy)
        return module


def prepare_sharding(cfg: Config) -> None:
    """Add what a sharded model needs to a config whose ``model_wrapper_cfg`` asks for it, in place.

    Raises:
        ConfigError: There is no launcher, so there is one process.
    """
    wrapper = cfg.get('model_wrapper_cfg') or {}
    if not is_a(FullyShardedDataParallel, wrapper.get('type'), MODEL_WRAPPERS):
        return
    if cfg.launcher == 'none':
        raise ConfigError(
            '--fsdp splits a model over several processes: start them with tools/dist_train.sh CONFIG GPUS'
        )
    hooks = list(cfg.get('custom_hooks') or [])
    wrapper['copied'] = any(is_a(EMAHook, hook['type'], HOOKS) for hook in hooks)
    cfg.custom_hooks = [*hooks, dict(type='SplitCheckpointHook'), dict(type='GatherCheckpointHook')]


def check_shardable(model: nn.Module) -> None:
    """Refuse what reads whole weights outside of a forward pass, or shares them."""
    if has_adapters(model.backbone):
        raise ConfigError('--fsdp: with adapters, student and teacher share their weights, which cannot be split twice')
    for term in model.losses:
        if term.reads_teacher_weights:
            raise ConfigError(
                f'--fsdp: {type(term).__name__} reads the weights of whole towers, of which each process has a part: '
                'train it without --fsdp, or choose distillation, counterfactual images or plain fine-tuning'
            )
    if model.knn_gate is not None:
        raise ConfigError(
            '--fsdp: model.knn_gate reads whole towers, of which each process has a part: use it in tests'
        )


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the parameters of a classifier and of its teacher over the processes of a mesh, in place.

    Units, whose parameters are gathered together: each block of each tower, each tower, the head, and the model. A
    tower is a unit of its own because the relevance map ends with a backward pass, after which torch splits again what
    was gathered for the model; its next forward pass must gather it anew.
    """
    teacher = getattr(model.teacher, 'backbone', None)  # a copy of the model shares its teacher
    towers = [tower for tower in (model.backbone, teacher) if tower is not None and not isinstance(tower, FSDPModule)]
    for tower in towers:
        for block in find_blocks(tower):
            fully_shard(block, mesh=mesh)
        fully_shard(tower, mesh=mesh)
    for part in (model.neck, model.head):
        if part is not None:
            fully_shard(part, mesh=mesh)
    if hasattr(model.head, 'distill_loss'):  # knowledge distillation calls it, and it reads the parameters of the head
        register_fsdp_forward_method(model.head, 'distill_loss')
    fully_shard(model, mesh=mesh)


def find_blocks(tower: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a tower, inner ones first: members, all of one class, of its lists and sequences."""
    blocks = []
    for parent in tower.modules():
        members = list(parent.children()) if isinstance(parent, (nn.ModuleList, nn.Sequential)) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            blocks += [member for member in members if next(member.parameters(), None) is not None]
    return blocks[::-1]


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are split over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def save_checkpoint(runner: Runner, *args: Any, **kwargs: Any) -> None:
    """``runner.save_checkpoint``, which all processes of a sharded model must take part in; the first one writes."""
    save = type(runner).save_checkpoint
    if is_sharded(runner.model):
        save = save.__wrapped__  # without mmengine's @master_only
    save(runner, *args, **kwargs)


def clip_sharded(parameters: Iterator[nn.Parameter], max_norm: float, **kwargs: Any) -> Tensor:
    """``clip_grad_norm_`` whose result is the norm over all processes."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, **kwargs).full_tensor()


def gather(value: Any) -> Any:
    """A nested value with whole tensors in place of sharded ones, on the CPU of the first process; all processes take
    part, the others get empty tensors."""
    if isinstance(value, DTensor):
        whole = value.to(value.device_mesh.device_type).full_tensor()
        return whole.cpu() if is_main_process() else whole.new_empty(0)
    if isinstance(value, dict):
        return type(value)((key, gather(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(gather(item) for item in value)
    return value


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process keeps, if ``like`` is sharded and has its shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device_mesh.device_type)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@HOOKS.register_module()
class GatherCheckpointHook(Hook):
    """Checkpoints of a sharded model hold whole tensors. Runs after the hooks that change a checkpoint."""

    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        """Leave out the Runner's initialisation, which was done before the model was split."""
        if is_sharded(runner.model):
            runner._init_model_weights = lambda: None

    def before_train(self, runner: Runner) -> None:
        """Clip gradients by the norm over all processes."""
        wrapper: OptimWrapper = runner.optim_wrapper
        if is_sharded(runner.model) and getattr(wrapper, 'clip_func', None) is torch.nn.utils.clip_grad_norm_:
            wrapper.clip_func = clip_sharded

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Gather all tensors."""
        if is_sharded(runner.model):
            checkpoint.update(gather(checkpoint))


@HOOKS.register_module()
class SplitCheckpointHook(Hook):
    """Splits the tensors of a checkpoint for a sharded model. Runs before the hooks that read it."""

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace whole tensors by the parts of this process."""
        if not is_sharded(runner.model):
            return
        own = runner.model.state_dict()
        for states in (checkpoint['state_dict'], checkpoint.get('ema_state_dict', {})):
            for name, value in states.items():
                like = own.get(name.removeprefix('module.'))
                if like is not None:
                    states[name] = split_like(value, like)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if optimizer is not None and 'optimizer' in checkpoint:
            parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
            for index, state in checkpoint['optimizer']['state'].items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.ndim:
                        state[name] = split_like(value, parameters[index])
