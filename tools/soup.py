#!/usr/bin/env python3
"""Average the weights of several fine-tuned models into one checkpoint.

    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth            # all of them
    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth --greedy   # those that help on the held-out images
    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth --greedy --ties paper      # as published where soups are
    equally accurate

They are models of one config that started from the same weights: other seeds, other epochs, other hyper-parameters. The
    greedy soup looks
at the images of ``val_dataloader``, which are held out of the training set, never at a test set or a shift.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

import mmcfmask  # noqa: F401  registers the components, and mmcfmask:: in _base_
from mmcfmask.datasets.holdout import follow_run
from mmcfmask.engine.build import build_runner
from mmcfmask.engine.checkpoints import check_checkpoint, check_same_tower, inherited_meta
from mmcfmask.engine.checks.outputs import check_out
from mmcfmask.engine.config import load_config
from mmcfmask.engine.hooks import CheckClassesHook
from mmcfmask.engine.options import add_cfg_options, file_name
from mmcfmask.engine.soup import TIES, greedy_soup, head_maker, save_soup, uniform_soup
from mmcfmask.engine.testing import skip_pretrained_weights
from mmcfmask.errors import ConfigError, one_line
from mmcfmask.evaluation import preference
from mmcfmask.output import run_tool


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Average the weights of several fine-tuned models')
    parser.add_argument('config', help='config file that the models were trained with')
    parser.add_argument('checkpoints', nargs='+', help='checkpoint files')
    parser.add_argument('--out', type=file_name, required=True, help='the checkpoint to write')
    parser.add_argument(
        '--greedy', action='store_true', help='add a model only if the soup does not get worse on the held-out images'
    )
    parser.add_argument(
        '--ties',
        choices=TIES,
        default='nll',
        help='of two greedy soups of the same accuracy the better is that '
        'of the lower cross-entropy (nll, the default), the larger (paper: Wortsman et al.), or the smaller (code: '
        'theirs)',
    )
    parser.add_argument('--work-dir', type=file_name, help='where logs go (default: the folder of --out)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if len(set(args.checkpoints)) < len(args.checkpoints):
        parser.error('a checkpoint is named twice')
    return args


def held_out_accuracy(cfg: Config, work_dir: str, trained: dict):
    """A function of weights: how good they are on ``val_dataloader``, by the metric that chooses checkpoints
    (:func:`preference`); ``trained`` is the metainfo of what they were trained on."""
    if cfg.get('val_dataloader') is None:
        raise SystemExit('--greedy needs held-out images, but the config has no val_dataloader')
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

    def evaluate(state) -> tuple[float, float]:
        # Of a checkpoint the weights of auxiliary losses are left out; anything else that does not fit is an error.
        runner.model.load_state_dict(state)
        metrics = runner.val()
        chosen = next(iter(metrics)) if key in (None, 'auto') else key  # mmengine's 'auto': the first
        return preference(metrics, chosen, rule)

    return evaluate


def _cells(found: tuple[float, float]) -> tuple[str, str]:
    return f'{found[0]:.2f}', f'{found[1]:.3f}'


@one_line()
def main(argv=None) -> None:
    args = parse_args(argv)
    check_out(args.out)
    cfg = load_config(args.config, args.cfg_options)
    ingredients = {path: check_checkpoint(path) for path in args.checkpoints}
    first, trained = args.checkpoints[0], ingredients[args.checkpoints[0]]['meta'].get('dataset_meta') or {}
    for path, checkpoint in ingredients.items():
        check_same_tower(cfg.model, checkpoint, path)
        classes = (checkpoint['meta'].get('dataset_meta') or {}).get('classes')
        if classes and trained.get('classes') and list(classes) != list(trained['classes']):
            raise ConfigError(
                f'{path} was trained on other classes than {first}, or has them in another order: their heads cannot '
                'be averaged'
            )
    seeds = {checkpoint['meta'].get('seed') for checkpoint in ingredients.values()}
    if args.greedy and follow_run(cfg.get('val_dataloader') or {}, seeds.pop() if len(seeds) == 1 else 0) and seeds:
        raise ConfigError(
            f"{args.config}: val_dataloader is held out by the seed of each run (holdout.seed='run'), so the others "
            'have trained on it: a greedy soup needs models of one hold-out, trained with a number as holdout.seed'
        )
    make_head = head_maker(cfg.model)
    skip_pretrained_weights(cfg.model)

    def load(path: str):
        return ingredients[path]['state_dict']

    table = None
    try:
        if args.greedy:
            evaluate = held_out_accuracy(cfg, args.work_dir or str(Path(args.out).parent), trained)
            soup, chosen, alone = greedy_soup(args.checkpoints, load, evaluate, args.ties, make_head)
            table = Table('Model', 'Held-out accuracy', '−NLL', 'In the soup')
            for path, found in sorted(alone.items(), key=lambda item: item[1], reverse=True):
                table.add_row(path, *_cells(found), 'yes' if path in chosen else '')
            table.add_row('the soup', *_cells(evaluate(soup)), f'{len(chosen)} of {len(alone)}', style='bold')
        else:
            soup, chosen = uniform_soup(map(load, args.checkpoints), make_head), args.checkpoints
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f'{error}') from None
    meta = dict(
        inherited_meta(ingredients[args.checkpoints[0]]),
        soup='greedy' if args.greedy else 'uniform',
        ingredients=list(chosen),
    )
    save_soup(args.out, soup, meta)
    if table:
        Console().print(table)
    Console(soft_wrap=True).print(f'{meta["soup"]} soup of {len(chosen)} models: {args.out}', highlight=False)


if __name__ == '__main__':
    run_tool(main)
