"""Hooks: reproducible randomness, and an early end where training has failed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import ExponentialMovingAverage, is_model_wrapper
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets import FolderDataset, FolderShiftDataset
from ..datasets.names import first_difference, plain_name
from ..errors import ConfigError, NumericalError
from ..evaluation.accuracy import check_groups
from ..models.class_embeddings.text import resolve_classnames
from ..ranges import Positive, Share


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
    uninterrupted one would have. Random augmentation in data workers is seeded by mmengine per epoch and is not
    covered.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Reseed CPU and GPU generators."""
        torch.manual_seed(((runner.seed or 0) * 1_000_003 + runner.iter) * get_world_size() + get_rank())


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Stop the run where the loss, or the norm of the gradient that was clipped, is no longer a finite number, before a
    checkpoint of it can be written. (With a loss scaler, which leaves out such steps, the gradient is its concern.)

    Raises:
        NumericalError: Names the iteration, the parts of the loss, the norm and the last good checkpoint.
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
        raise NumericalError(
            f'the loss or its gradient is not finite at iteration {runner.iter + 1} (epoch {runner.epoch + 1}): '
            f'{", ".join(f"{name} = {value:g}" for name, value in parts.items())}; {advice}. '
            'A smaller learning rate, or float32 instead of --amp, usually helps.'
        )


@MODELS.register_module()
class UnbiasedMovingAverage(ExponentialMovingAverage):
    """mmengine's ``ExponentialMovingAverage``, corrected as Adam's (Kingma & Ba 2015, section 3), so that the first
    weights do not count for more than those after them::

        average after k updates = Σ_{i=1..k} (1 − m)^(k−i) θ_i / Σ_{i=1..k} (1 − m)^(k−i)        m: momentum

    It is kept by steps towards θ_k of m / (1 − (1 − m)^k).
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of ``model`` into the average."""
        updates = int(self.steps) // self.interval + 1
        self.share = self.momentum / (1 - (1 - self.momentum) ** updates)
        super().update_parameters(model)

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """One parameter, in place."""
        averaged_param.lerp_(source_param, self.share)


@HOOKS.register_module()
class RelativeEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with a momentum that follows the length of the run, 1 / (``horizon`` · optimizer steps),
    and an average without bias to the first weights.

    One value then means the same for 26 steps and for 25,000. Every step of the optimizer counts once, however many
    batches it takes.

    Args:
        horizon (float): How far back the average reaches, as a share of the run; in (0, 1].
        **kwargs: Those of ``EMAHook``, except for the momentum; ``interval`` counts optimizer steps.

    Raises:
        ValueError: A horizon outside (0, 1], or a momentum besides.
    """

    def __init__(self, horizon: Share = 0.2, ema_type: str = 'UnbiasedMovingAverage', **kwargs) -> None:
        if not 0 < horizon <= 1:
            raise ConfigError(
                f'RelativeEMAHook(horizon={horizon}): the horizon is a share of the run, above 0 and at most 1'
            )
        if 'momentum' in kwargs:
            raise ConfigError(
                'RelativeEMAHook works out the momentum from its horizon: leave momentum out, or use EMAHook'
            )
        super().__init__(ema_type=ema_type, **kwargs)
        self.horizon = horizon

    def before_run(self, runner) -> None:
        """Work out the momentum and copy the model."""
        updates = self.horizon * runner.max_iters / (batches_per_step(runner) * self.ema_cfg.get('interval', 1))
        self.ema_cfg['momentum'] = 1 / max(
            updates, 2
        )  # max_iters is 0 where nothing is trained, and mmengine wants less than 1
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

    def __init__(self, start: Positive, end: Positive) -> None:
        if start <= 0 or end <= 0:
            raise ConfigError(f'DistillWeightHook(start={start}, end={end}): both must be above 0')
        self.start = start
        self.end = end

    def before_train(self, runner) -> None:
        """Refuse a model without distillation before it is trained for hours."""
        model = unwrapped(runner.model)
        if getattr(model, 'teacher', None) is None or model.head.distill is None:
            raise ConfigError(
                'DistillWeightHook schedules the weight of the distillation, but model.teacher or model.head.distill '
                'is None: leave the hook out of custom_hooks'
            )
        self.head = model.head

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weight of this step."""
        begun = (
            runner.iter // batches_per_step(runner) * batches_per_step(runner)
        )  # all batches of a step have its weight
        self.head.distill_weight = self.start * (self.end / self.start) ** (begun / runner.max_iters)


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Before the first batch: every dataset has the classes of the head, in its order, or says in
    ``metainfo['label_groups']`` which outputs of the head mean them. All sets of a :class:`MultiSetTestLoop` or
    :class:`MultiSetValLoop` are looked at.

    The classes of the head are those of the training set, which a checkpoint records, or those of the prompts or images
    that it starts from.

    Raises:
        ConfigError: Another number of classes, groups that do not fit, a class of the head or of the training set at
            another label, or two sets labelled by the order of their folders that have folders of other names.
    """

    def __init__(self) -> None:
        self.trained: dict = {}  # metainfo of the training set

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Remember the classes that were trained."""
        self.trained = (checkpoint.get('meta') or {}).get('dataset_meta') or {}

    def before_train(self, runner) -> None:
        """Check the training and the validation sets; of a resumed run against the classes it began with."""
        if not runner.iter:  # weights to start from may know other classes
            self.trained = {}
        self._check_all(
            runner, {'train_dataloader': runner.train_dataloader, **self._loaders('val_dataloader', runner.val_loop)}
        )
        self.trained = metainfo_of(runner.train_dataloader)
        if self.trained.get('label_groups') is not None:
            raise ConfigError(
                'the training set has only some of the classes of the head, or groups of them (label_groups), so that '
                'its labels are no rows of the head: train on a FolderDataset with a folder for each class'
            )

    def before_test(self, runner) -> None:
        """Check the test sets."""
        self._check_all(runner, self._loaders('test_dataloader', runner.test_loop))

    def check_validation(self, runner, trained: dict) -> None:
        """Check the validation sets against the metainfo of what was trained on; for those who validate without a
        training."""
        self.trained = trained
        self._check_all(runner, self._loaders('val_dataloader', runner.val_loop))

    @staticmethod
    def _loaders(name: str, loop) -> dict[str, DataLoader]:
        if loop is None:
            return {}
        if hasattr(loop, 'loaders'):
            return {f'{name}[{part!r}]': loader for part, loader in loop.loaders.items()}
        return {name: loop.dataloader}

    def _check_all(self, runner, loaders: dict[str, DataLoader]) -> None:
        model = unwrapped(runner.model)
        head = getattr(model, 'head', None)
        start = getattr(head, 'class_weights', None) or {}
        parts = {
            'model.head.class_weights.dataset': start.get('dataset'),
            'model.head.class_weights.held_out': start.get('held_out'),
        }
        if getattr(model, 'gate', None) is not None:
            parts.update({f'model.gate.{key}': getattr(model.gate, key, None) for key in ('dataset', 'held_out')})
        starts = {key: metainfo_of_folders(part) for key, part in parts.items()}
        first = None  # set whose labels are the order of its folders
        for name, loader in loaders.items():
            metainfo = metainfo_of(loader)
            check_number_of_classes(name, metainfo, getattr(head, 'num_classes', None))
            if metainfo.get('label_groups') is not None:
                continue
            check_prompts(name, metainfo, start.get('classnames'), 'model.head.class_weights')
            for auxiliary in getattr(model, 'auxiliary', None) or ():
                check_prompts(
                    name,
                    metainfo,
                    getattr(auxiliary, 'classnames', None),
                    f'model.auxiliary ({type(auxiliary).__name__})',
                )
            for key, images in starts.items():
                check_labels(name, metainfo, f'the images that the model is made of ({key})', images)
            check_labels(name, metainfo, 'the training set of the checkpoint', self.trained)
            if metainfo.get('folders'):
                first = first or (name, metainfo)
                check_labels(name, metainfo, *first)


def metainfo_of(loader: DataLoader) -> dict:
    """What the dataset of a loader says about itself."""
    return getattr(loader.dataset, 'metainfo', None) or {}


def metainfo_of_folders(dataset: dict | None) -> dict:
    """The same of the config of a :class:`FolderDataset`, whose images are not listed; empty for anything else."""
    kind = DATASETS.get(dataset['type']) if dataset and isinstance(dataset.get('type'), str) else None
    if (
        not isinstance(kind, type)
        or not issubclass(kind, FolderDataset)
        or kind.class_images is FolderShiftDataset.class_images
    ):
        return {}
    built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    if not built.metainfo.get('classes'):
        built.name_classes(Path(built.img_prefix))
    return built.metainfo


def check_number_of_classes(name: str, metainfo: dict, num_classes: int | None) -> None:
    """Raise a ConfigError unless the classes of the dataset of ``name`` are those of a head with ``num_classes``, or
    groups of these."""
    classes, groups = metainfo.get('classes'), metainfo.get('label_groups')
    if classes is None or num_classes is None:
        return
    if groups is not None:
        if len(groups) != len(classes):
            raise ConfigError(f'the dataset of {name} has {len(classes)} classes, but {len(groups)} label_groups')
        try:
            check_groups(groups, num_classes)
        except ValueError as error:
            raise ConfigError(
                f'the dataset of {name} does not fit model.head.num_classes={num_classes}: {error}'
            ) from None
    elif len(classes) != num_classes:
        raise ConfigError(
            f'the dataset of {name} has {len(classes)} classes ({", ".join(map(str, classes[:5]))}, …), but '
            f'model.head.num_classes={num_classes}. For a test set with some of the classes use a FolderShiftDataset, '
            'which matches folders by name'
        )


def check_prompts(name: str, metainfo: dict, prompts: str | Sequence[str] | None, where: str) -> None:
    """Raise a ConfigError where a name among the prompts of ``where`` is the class of another label in the dataset of
    ``name``."""
    classes = metainfo.get('classes')
    if not prompts or not classes:
        return
    rows = defaultdict(list)
    for row, prompt in enumerate(map(plain_name, resolve_classnames(prompts))):
        rows[prompt].append(row)
    for label, found in enumerate(str(found) for found in classes):
        if label not in rows.get(plain_name(found), [label]):
            raise ConfigError(
                f'{where}.classnames has {found!r} in place {rows[plain_name(found)][0]}, but it is the label {label} '
                f'of the dataset of {name} ({", ".join(map(str, classes[:5]))}, …): classes would be exchanged. Give '
                'classnames in the order of the labels, or use a FolderShiftDataset, which matches by name'
            )


def check_labels(name: str, metainfo: dict, where: str, trained: dict) -> None:
    """Raise a ConfigError where a label means another class in the dataset of ``name`` than in ``where``, by the names
    of folders if those make the labels of both, else by the names of classes."""
    key, what = ('folders', 'the folder ') if metainfo.get('folders') and trained.get('folders') else ('classes', '')
    ours, theirs = ([str(name) for name in info.get(key) or ()] for info in (metainfo, trained))
    label = first_difference(ours, theirs) if ours and theirs else None
    if label is None:
        return
    ours, theirs = (repr(names[label]) if label < len(names) else 'nothing' for names in (ours, theirs))
    known = [str(name) for name in trained.get('classes') or trained['folders']]
    raise ConfigError(
        f'class {label} is {what}{ours} in the dataset of {name}, but {theirs} in {where}: its images would be taken '
        'for '
        "another class. Match its folders by name, with type='FolderShiftDataset', head_classes="
        f'[{", ".join(map(repr, known[:5]))}{", …" if len(known) > 5 else ""}] and, for other names, folder_map; or, '
        'if only the names are others, give the folders in the order of the labels (folders=[…]) and the same '
        'classes=[…]'
    )
