#!/usr/bin/env python3
"""WiSE-FT: test the line (1 − α) θ0 + α θ1 between the pre-trained weights of a config and a fine-tuned checkpoint, on
every test set.

    python tools/wise_ft.py CONFIG CHECKPOINT                              # α = 0, 0.1, …, 1
    python tools/wise_ft.py CONFIG CHECKPOINT --alphas 0 0.5 1 --shifts imagenet-r
    python tools/wise_ft.py CONFIG CHECKPOINT --save 0.5                   # also the checkpoint at α = 0.5

Every image is read once for all α. α = 0.5 is the default to report; an α chosen by its accuracy on a shift is no
result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmcfmask  # noqa: F401  before mmengine (compat.load_yapf); registers the components, and mmcfmask:: in _base_

# isort: split
from mmengine.dist import is_main_process
from rich.console import Console

from mmcfmask.engine.build import build_runner
from mmcfmask.engine.checkpoints import check_state_dict, inherited_meta
from mmcfmask.engine.checks.data import check_test_data
from mmcfmask.engine.checks.outputs import check_work_dir
from mmcfmask.engine.checks.selection import check_start_images
from mmcfmask.engine.config import load_config
from mmcfmask.engine.hooks import unwrapped
from mmcfmask.engine.launcher import add_run_arguments, apply_run_arguments
from mmcfmask.engine.options import file_name
from mmcfmask.engine.testing import prepare_test
from mmcfmask.engine.wise_ft import line_table, parse_alphas, save_interpolated, write_results
from mmcfmask.errors import one_line
from mmcfmask.output import run_tool
from mmcfmask.reporting import results_table


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test the line between pre-trained and fine-tuned weights')
    parser.add_argument('config', help='config file; its model without a checkpoint is α = 0')
    parser.add_argument('checkpoint', help='checkpoint file, α = 1')
    parser.add_argument(
        '--alphas',
        nargs='+',
        default=['0:1:0.1'],
        metavar='ALPHA',
        help='numbers, or FIRST:LAST:STEP (default: 0:1:0.1)',
    )
    parser.add_argument('--save', type=float, metavar='ALPHA', help='write the checkpoint at this α')
    parser.add_argument(
        '--out',
        type=file_name,
        metavar='DIR',
        help='where table, curve and checkpoint go (default: <work dir>/wise_ft)',
    )
    parser.add_argument(
        '--shifts',
        nargs='*',
        metavar='NAME',
        help='test on these shifts besides the in-distribution set; one whose data '
        'is not there is an error (default: those of the config, without what is not there)',
    )
    parser.add_argument(
        '--skip-broken', action='store_true', help='leave out images that cannot be read, and count them'
    )
    add_run_arguments(parser, amp='bfloat16 autocast; weights are interpolated in float32 all the same')
    args = parser.parse_args(argv)
    try:
        args.alphas = parse_alphas(args.alphas)
        args.save = None if args.save is None else parse_alphas([args.save])[0]
    except ValueError as error:
        parser.error(str(error))
    return args


@one_line()
def main(argv=None) -> dict:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    apply_run_arguments(cfg, args)
    folder = Path(args.out or Path(cfg.work_dir) / 'wise_ft')
    check_work_dir(cfg.work_dir)
    check_work_dir(str(folder), 'folder', '--out')
    with one_line(args.config):
        checkpoint = prepare_test(cfg, args.checkpoint, args.shifts, args.skip_broken, args.amp, keep_start=True)
        check_test_data(cfg)
        check_start_images(cfg)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=args.alphas)
    runner = build_runner(cfg)
    check_state_dict(unwrapped(runner.model), checkpoint, args.checkpoint)
    metrics = runner.test()
    if is_main_process():
        meta = checkpoint.get('meta') or {}
        results = write_results(runner.test_loop, folder, args.config, args.checkpoint, meta)
        if args.save is not None:
            path = folder / f'wise_ft_{args.save:g}.pth'
            save_interpolated(
                runner.test_loop,
                args.save,
                path,
                dict(inherited_meta(checkpoint), seed=meta.get('seed'), config=args.config, checkpoint=args.checkpoint),
            )
            results['written'].append(path)
        console, table = Console(), line_table(results['line'])
        notes = table.pop('notes')
        console.print(results_table(**table))
        for note in [*notes, 'written: ' + '  '.join(map(str, results['written']))]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return metrics


if __name__ == '__main__':
    run_tool(main)
