"""When memory runs out: what needs it, and which settings save it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from mmengine.config import Config
from torch import nn

from ..errors import MemoryShortageError, first_line
from ..models.towers.adapters import has_adapters
from ..models.towers.fast_path import LeanTransformer

FLOAT32 = 4
AMP = 'about half of what grows with the images of a batch, in bfloat16'


@contextmanager
def memory_explained(
    cfg: Config, model: nn.Module, evaluation: Literal['val', 'test'] = 'test', processes: int = 1
) -> Iterator[None]:
    """Inside the context, running out of memory is a :class:`MemoryShortageError` that says which settings help.

    Args:
        cfg (Config): Config of the run.
        model (nn.Module): Its classifier, without a wrapper. In training mode, it was a training step.
        evaluation (str): What the run does otherwise.
        processes (int): Processes of the run.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = save_in_training(cfg, model, processes) if model.training else save_in_evaluation(cfg, evaluation)
        lines = [f'  {setting}: {effect}' for setting, effect in advice.items()]
        text = '\n'.join([first_line(error), 'What saves memory, the cheapest first:', *lines])
        raise MemoryShortageError(text) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate memory, on a GPU or a CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def fixed_memory(model: nn.Module, processes: int = 1, sharded: bool = False) -> int:
    """Bytes per process that do not depend on the images of a step, by arithmetic: weights and teacher, and of what is
    trained also gradients, their buckets (with several processes) and the two moments of AdamW, all in float32.

    Args:
        model (nn.Module): A classifier.
        processes (int): Processes of the run.
        sharded (bool): Whether the model is split over them (FSDP).
    """
    weights = list(model.parameters())  # each once, also where the teacher shares those of the student
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    copies = 3 + (processes > 1 and not sharded)
    total = FLOAT32 * (sum(weight.numel() for weight in weights) + copies * trained)
    return total // processes if sharded else total


def save_in_training(cfg: Config, model: nn.Module, processes: int = 1) -> dict[str, str]:
    """Settings that save memory in a training and are not set yet, the cheapest first, each with its effect, by
    arithmetic or as measured for ViT-B/16 (docs/performance.md).

    Args:
        cfg, model, processes: See :func:`memory_explained`.
    """
    tower, batch = model.backbone, cfg.train_dataloader.batch_size
    checkpointed = getattr(tower, 'grad_checkpointing', None)  # None: the tower cannot
    ways = {}
    if cfg.optim_wrapper.get('type') != 'AutocastOptimWrapper':
        ways['--amp'] = AMP
    if batch > 1:
        total = cfg.get('total_batch_size')
        step = f'; gradients are accumulated to the same {total} images per step' if total else ''
        ways[f'train_dataloader.batch_size={batch // 2}'] = f'half of what grows with the images{step}'
    if not checkpointed and any(isinstance(part, LeanTransformer) and not part.recompute for part in tower.modules()):
        ways['model.backbone.recompute=True'] = 'a third of what grows with the images, for 3 % more time'
    if checkpointed is False:
        ways['model.backbone.grad_checkpointing=True'] = 'all but the inputs of blocks, for a third more forward work'
    if processes > 1 and not cfg.get('model_wrapper_cfg') and not has_adapters(model):
        before, after = fixed_memory(model, processes) / 1e9, fixed_memory(model, processes, sharded=True) / 1e9
        ways['--fsdp'] = f'{after:.1f} in place of {before:.1f} GB for weights, gradients, optimizer and teacher'
    return ways


def save_in_evaluation(cfg: Config, loop: Literal['val', 'test'] = 'test') -> dict[str, str]:
    """The same for a validation or a test.

    Args:
        cfg (Config): Config of the run.
        loop (str): Which of the two.
    """
    loaders = cfg[f'{loop}_dataloader']
    loaders = {'': loaders} if 'dataset' in loaders else {f'.{name}': loader for name, loader in loaders.items()}
    sizes = {f'{loop}_dataloader{name}.batch_size': loader['batch_size'] for name, loader in loaders.items()}
    ways = {} if cfg[f'{loop}_cfg'].get('amp') else {'--amp': AMP}
    ways.update({f'{key}={size // 2}': 'half of what grows with the images' for key, size in sizes.items() if size > 1})
    return ways
