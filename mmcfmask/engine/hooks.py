"""Hooks: reproducible randomness, and an early end where training has failed."""
from __future__ import annotations

import math

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import ExponentialMovingAverage, is_model_wrapper
from mmpretrain.registry import HOOKS, MODELS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..evaluation.accuracy import check_groups


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where it runs in a wrapper such as DDP's."""
    return model.module if is_model_wrapper(model) else model


def batches_per_step(runner) -> int:
    """Over how many batches of a process the gradient of an optimizer step is accumulated; 1 where nothing is trained."""
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed torch by (seed, iteration, rank) before every training iteration.

    Random masks and donors then depend on nothing but these, so that a run resumed at any iteration goes on as the
    uninterrupted one would have. Random augmentation in data workers is seeded by mmengine per epoch and is not covered.
    """
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Reseed CPU and GPU generators."""
        torch.manual_seed(((runner.seed or 0) * 1_000_003 + runner.iter) * get_world_size() + get_rank())


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Stop the run where the loss, or the norm of the gradient that was clipped, is no longer a finite number, before a checkpoint of it
    can be written. (With a loss scaler, which leaves out such steps, the gradient is its concern.)

    Raises:
        FloatingPointError: Names the iteration, the parts of the loss, the norm and the last good checkpoint.
    """
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Look at every part of the loss, and at the gradient."""
        parts = {name: float(value.detach()) for name, value in (outputs or {}).items() if 'loss' in name}
        norms = runner.message_hub.log_scalars.get('train/grad_norm')  # of the optimizer wrapper
        if norms is not None and getattr(runner.optim_wrapper, 'loss_scaler', None) is None:
            parts['grad_norm'] = norms.current()
        if all(math.isfinite(value) for value in parts.values()):
            return
        last = runner.message_hub.runtime_info.get('last_ckpt')
        advice = f'the last good checkpoint is {last}' if last else 'no checkpoint was saved before'
        raise FloatingPointError(
            f'the loss or its gradient is not finite at iteration {runner.iter + 1} (epoch {runner.epoch + 1}): '
            f'{", ".join(f"{name} = {value:g}" for name, value in parts.items())}; {advice}. '
            'A smaller learning rate, or float32 instead of --amp, usually helps.')


@MODELS.register_module()
class UnbiasedMovingAverage(ExponentialMovingAverage):
    """mmengine's ``ExponentialMovingAverage``, corrected as Adam's (Kingma & Ba 2015, section 3), so that the first weights do not count
    for more than those after them::

        average after k updates = Σ_{i=1..k} (1 − m)^(k−i) θ_i / Σ_{i=1..k} (1 − m)^(k−i)        m: momentum

    It is kept by steps towards θ_k of m / (1 − (1 − m)^k).
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of ``model`` into the average."""
        updates = int(self.steps) // self.interval + 1
        self.share = self.momentum / (1 - (1 - self.momentum)**updates)
        super().update_parameters(model)

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """One parameter, in place."""
        averaged_param.lerp_(source_param, self.share)


@HOOKS.register_module()
class RelativeEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with a momentum that follows the length of the run, 1 / (``horizon`` · optimizer steps), and an average
    without bias to the first weights.

    One value then means the same for 26 steps and for 25,000. Every step of the optimizer counts once, however many batches it takes.

    Args:
        horizon (float): How far back the average reaches, as a share of the run; in (0, 1].
        **kwargs: Those of ``EMAHook``, except for the momentum; ``interval`` counts optimizer steps.

    Raises:
        ValueError: A horizon outside (0, 1], or a momentum besides.
    """

    def __init__(self, horizon: float = 0.2, ema_type: str = 'UnbiasedMovingAverage', **kwargs) -> None:
        if not 0 < horizon <= 1:
            raise ValueError(f'RelativeEMAHook(horizon={horizon}): the horizon is a share of the run, above 0 and at most 1')
        if 'momentum' in kwargs:
            raise ValueError('RelativeEMAHook works out the momentum from its horizon: leave momentum out, or use EMAHook')
        super().__init__(ema_type=ema_type, **kwargs)
        self.horizon = horizon

    def before_run(self, runner) -> None:
        """Work out the momentum and copy the model."""
        updates = self.horizon * runner.max_iters / (batches_per_step(runner) * self.ema_cfg.get('interval', 1))
        self.ema_cfg['momentum'] = 1 / max(updates, 2)  # max_iters is 0 where nothing is trained, and mmengine wants less than 1
        super().before_run(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Take the weights into the average after a step of the optimizer."""
        if runner.optim_wrapper.should_update():  # it has counted this batch already
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


@HOOKS.register_module()
class DistillWeightHook(Hook):
    """The weight λ of the distillation goes from ``start`` to ``end``, in place of the head's ``distill_weight``::

        λ(t) = start · (end / start)^t        t: share of the optimizer steps that are done, 0 at the first

    It depends on nothing but the iteration, so a resumed run goes on as it would have.

    Args:
        start, end (float): Above 0.

    Raises:
        ValueError: A weight that is not above 0, or a model that does not distil.
    """

    def __init__(self, start: float, end: float) -> None:
        if start <= 0 or end <= 0:
            raise ValueError(f'DistillWeightHook(start={start}, end={end}): both must be above 0')
        self.start = start
        self.end = end

    def before_train(self, runner) -> None:
        """Refuse a model without distillation before it is trained for hours."""
        model = unwrapped(runner.model)
        if getattr(model, 'teacher', None) is None or model.head.distill is None:
            raise ValueError('DistillWeightHook schedules the weight of the distillation, but model.teacher or model.head.distill is None: '
                             'leave the hook out of custom_hooks')
        self.head = model.head

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weight of this step."""
        begun = runner.iter // batches_per_step(runner) * batches_per_step(runner)  # all batches of a step have its weight
        self.head.distill_weight = self.start * (self.end / self.start)**(begun / runner.max_iters)


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Before the first batch: every dataset has the classes of the head, in its order, or says in ``metainfo['label_groups']`` which
    outputs of the head mean them. All sets of a :class:`MultiSetTestLoop` or :class:`MultiSetValLoop` are looked at.

    Raises:
        ValueError: Another number of classes, groups that do not fit, the names of the head's prompts in another order than the
            dataset's labels, or two sets labelled by the order of their folders that have folders of other names.
    """

    def before_train(self, runner) -> None:
        """Check the training and the validation sets."""
        self._check_all(runner, {'train_dataloader': runner.train_dataloader, **self._loaders('val_dataloader', runner.val_loop)})

    def before_test(self, runner) -> None:
        """Check the test sets."""
        self._check_all(runner, self._loaders('test_dataloader', runner.test_loop))

    @staticmethod
    def _loaders(name: str, loop) -> dict[str, DataLoader]:
        if loop is None:
            return {}
        if hasattr(loop, 'loaders'):
            return {f'{name}[{part!r}]': loader for part, loader in loop.loaders.items()}
        return {name: loop.dataloader}

    def _check_all(self, runner, loaders: dict[str, DataLoader]) -> None:
        first = None  # set whose labels are the order of its folders, and these
        for name, loader in loaders.items():
            self._check(runner, name, loader)
            metainfo = getattr(loader.dataset, 'metainfo', None) or {}
            folders = metainfo.get('folders')
            if folders is None or metainfo.get('label_groups') is not None:
                continue
            first = first or (name, folders)
            for label, (ours, theirs) in enumerate(zip(folders, first[1])):
                if ours != theirs:
                    raise ValueError(f'class {label} is the folder {ours!r} in the dataset of {name}, but {theirs!r} in that of '
                                     f'{first[0]}: its images would be taken for another class. Say which folder is which class by a '
                                     "FolderShiftDataset with folder_map, or name the folders in the order of the labels (folders=[…])")

    def _check(self, runner, name: str, loader) -> None:
        model = unwrapped(runner.model)
        metainfo = getattr(loader.dataset, 'metainfo', None) or {}
        classes, groups = metainfo.get('classes'), metainfo.get('label_groups')
        num_classes = getattr(getattr(model, 'head', None), 'num_classes', None)
        if classes is None or num_classes is None:
            return
        if groups is not None:
            if len(groups) != len(classes):
                raise ValueError(f'the dataset of {name} has {len(classes)} classes, but {len(groups)} label_groups')
            try:
                check_groups(groups, num_classes)
            except ValueError as error:
                raise ValueError(f'the dataset of {name} does not fit model.head.num_classes={num_classes}: {error}') from None
            return
        if len(classes) != num_classes:
            raise ValueError(f'the dataset of {name} has {len(classes)} classes ({", ".join(map(str, classes[:5]))}, …), '
                             f'but model.head.num_classes={num_classes}')
        prompts = (getattr(model.head, 'class_weights', None) or {}).get('classnames')
        if isinstance(prompts, (list, tuple)) and sorted(prompts) == sorted(classes) and list(prompts) != list(classes):
            raise ValueError(f'model.head.class_weights.classnames holds the classes of {name} in another order than its labels '
                             f'({", ".join(classes[:5])}, …): the head would start with its rows exchanged')
