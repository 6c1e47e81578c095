"""A model soup of checkpoints: what tools/soup.py runs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmpretrain.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..datasets.holdout import follow_run
from ..errors import ConfigError
from ..evaluation import preference
from ..files import as_path, write_tensors
from ..models.towers.adapters import forget_adapters, holds_adapters, remove_adapters
from .build import build_runner
from .checkpoints import check_checkpoint, check_same_tower, check_state_dict, inherited_meta
from .checks import check_out
from .checks.classes import CheckClassesHook
from .checks.model import makes_head
from .config import load_config
from .hooks import unwrapped
from .soup import SOUPS, State, greedy_soup, head_maker, model_stock, uniform_soup
from .testing import build_model, skip_pretrained_weights
from .wise_ft import pretrained_weights


def run_soup(
    config: str | os.PathLike,
    checkpoints: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    greedy: bool = False,
    stock: bool = False,
    ties: str = 'nll',
    work_dir: str | os.PathLike | None = None,
    show: bool = False,
) -> dict:
    """Average the weights of several fine-tuned models into one checkpoint.

    Args:
        config (str): The config file that the models were trained with.
        checkpoints (Sequence[str]): Their files.
        out (str): The checkpoint to write.
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        greedy (bool): Add a model only if the soup does not get worse on the held-out images (``val_dataloader``).
        stock (bool): Model Stock: average the models and the pretrained weights, by the angle between the models.
        ties (str): As of :func:`mmcfmask.engine.soup.greedy_soup`.
        work_dir (str, optional): Folder for logs. None: the folder of ``out``.
        show (bool): Print a table.

    Returns:
        dict: The ``meta`` of the soup, with the names of its ``ingredients``.

    Raises:
        UserError: Something the user can mend; the message names the file, key or value, and what to do.
    """
    config, out, work_dir = map(as_path, (config, out, work_dir))
    checkpoints = list(map(as_path, checkpoints))
    if greedy and stock:
        raise ConfigError('a soup is greedy or Model Stock, not both: leave out --greedy or --stock')
    if len(set(checkpoints)) < len(checkpoints):
        raise ConfigError('a checkpoint is named twice')
    check_out(out)
    cfg = load_config(config, options)
    ingredients = {path: check_checkpoint(path) for path in checkpoints}
    trained = _check_ingredients(cfg, ingredients)
    if greedy:
        _check_held_out(cfg, ingredients)
    load = state_loader(cfg.model, ingredients)
    forget_adapters(cfg.model)  # a soup holds merged weights
    make_head = head_maker(cfg.model)
    pretrained = _pretrained_weights(cfg.model) if stock else {}
    skip_pretrained_weights(cfg.model)
    table, kind = None, 'greedy' if greedy else 'stock' if stock else 'uniform'
    if greedy:
        evaluate = evaluator_on_held_out(cfg, work_dir or str(Path(out).parent), trained)
        soup, chosen, alone = greedy_soup(checkpoints, load, evaluate, ties, make_head)
        table = _tabulate(chosen, alone, evaluate(soup)) if show else None
    else:
        states, chosen = list(map(load, checkpoints)), checkpoints
        soup = model_stock(states, pretrained, make_head) if stock else uniform_soup(states, make_head)
    meta = dict(inherited_meta(ingredients[checkpoints[0]]), soup=kind, ingredients=list(chosen))
    write_tensors(out, dict(meta=meta, state_dict=dict(soup)))
    if show:
        if table:
            Console().print(table)
        Console(soft_wrap=True).print(f'{SOUPS[kind]} of {len(chosen)} models: {out}', highlight=False)
    return meta


def state_loader(model: dict, ingredients: Mapping[str, dict]) -> Callable[[str], State]:
    """Return a function from the name of an ingredient to its state dict, with adapters merged into the pretrained
    weights: the average of products B A is no product of averages.

    Args:
        model (dict): The ``model`` of the config that the ingredients were trained with.
        ingredients (Mapping): Checkpoints by name.
    """
    if not any(holds_adapters(checkpoint['state_dict']) for checkpoint in ingredients.values()):
        return lambda path: ingredients[path]['state_dict']
    pretrained = build_model(copy.deepcopy(model))

    def load(path: str) -> State:
        state = ingredients[path]['state_dict']
        if not holds_adapters(state):
            return state
        check_state_dict(pretrained, ingredients[path], path)
        pretrained.load_state_dict(state)
        merged = copy.deepcopy(pretrained)
        remove_adapters(merged, merge=True)
        terms = {name: value for name, value in state.items() if name.startswith('losses.')}
        return {**merged.state_dict(), **terms}

    return load


def _pretrained_weights(model: dict) -> dict[str, Tensor]:
    """The pretrained weights of a model config, with the text tower if it makes the head."""
    return MODELS.build(copy.deepcopy(model)).state_dict() if makes_head(model) else pretrained_weights(model)


def _check_ingredients(cfg: Config, ingredients: dict[str, dict]) -> dict:
    """Check that checkpoints are of one tower and have the same classes; returns the metainfo of their training set."""
    first, *_ = ingredients
    trained = ingredients[first]['meta'].get('dataset_meta') or {}
    for path, checkpoint in ingredients.items():
        check_same_tower(cfg.model, checkpoint, path)
        classes = (checkpoint['meta'].get('dataset_meta') or {}).get('classes')
        if classes and trained.get('classes') and list(classes) != list(trained['classes']):
            raise ConfigError(
                f'{path} was trained on other classes than {first}, or has them in another order: their heads cannot '
                'be averaged'
            )
    return trained


def _check_held_out(cfg: Config, ingredients: dict[str, dict]) -> None:
    """Check that no ingredient was trained on the held-out images; let these follow the seed of all."""
    if cfg.get('val_dataloader') is None:
        raise ConfigError('--greedy needs held-out images, but the config has no val_dataloader')
    seeds = {checkpoint['meta'].get('seed') for checkpoint in ingredients.values()}
    if follow_run(cfg.val_dataloader, seeds.pop() if len(seeds) == 1 else 0) and seeds:
        raise ConfigError(
            "val_dataloader is held out by the seed of each run (holdout.seed='run'), so the other models were trained "
            'on it: a greedy soup needs models of one hold-out, trained with a number as holdout.seed'
        )


def evaluator_on_held_out(cfg: Config, work_dir: str, trained: dict) -> Callable[[State], tuple[float, float]]:
    """Return a function from weights to their quality on ``val_dataloader``, by the metric that chooses checkpoints
    (:func:`mmcfmask.evaluation.preference`).

    Args:
        cfg (Config): The config; it is changed.
        work_dir (str): Folder for logs.
        trained (dict): Metainfo of the training set.
    """
    checkpoint = cfg.default_hooks.checkpoint
    key, rule = checkpoint.get('save_best'), checkpoint.get('rule')
    cfg.merge_from_dict(dict(launcher='none', work_dir=work_dir, log_level='WARNING', load_from=None, resume=False))
    cfg.default_hooks.checkpoint = None
    for part in (
        'train_cfg',
        'train_dataloader',
        'optim_wrapper',
        'param_scheduler',
        'test_cfg',
        'test_dataloader',
        'test_evaluator',
    ):
        cfg[part] = None
    runner = build_runner(cfg)
    next(hook for hook in runner.hooks if isinstance(hook, CheckClassesHook)).check_validation(runner, trained)

    def evaluate(state: State) -> tuple[float, float]:
        check_state_dict(unwrapped(runner.model), dict(state_dict=state), 'an ingredient of the soup')
        runner.model.load_state_dict(state)
        metrics = runner.val()
        chosen = next(iter(metrics)) if key in (None, 'auto') else key  # mmengine's 'auto' is the first
        return preference(metrics, chosen, rule)

    return evaluate


def _tabulate(chosen: Sequence[str], alone: Mapping[str, tuple[float, float]], together: tuple[float, float]) -> Table:
    """Make a table of the ingredients alone and of the soup."""
    table = Table('Model', 'Held-out accuracy', '−NLL', 'In the soup')
    for path, found in sorted(alone.items(), key=lambda item: item[1], reverse=True):
        table.add_row(path, f'{found[0]:.2f}', f'{found[1]:.3f}', 'yes' if path in chosen else '')
    count = f'{len(chosen)} of {len(alone)}'
    table.add_row('the soup', f'{together[0]:.2f}', f'{together[1]:.3f}', count, style='bold')
    return table
