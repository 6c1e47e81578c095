#!/usr/bin/env python3
"""Test a model on its in-distribution set and on the distribution shifts of the config.

    python tools/test.py CONFIG [CHECKPOINT]                               # every set of the config whose data is there
    python tools/test.py CONFIG CHECKPOINT --shifts imagenet-r imagenet-a  # these, or an error
    python tools/test.py CONFIG CHECKPOINT --out metrics.json --predictions predictions/

Without a checkpoint, CLIP is tested as it comes (zero-shot).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import mmcfmask  # noqa: F401  before mmengine (compat.load_yapf); registers the components, and mmcfmask:: in _base_

# isort: split
from mmengine.dist import is_main_process
from rich.console import Console

from mmcfmask.compat import end_process_group
from mmcfmask.engine.build import build_runner
from mmcfmask.engine.checkpoints import check_state_dict
from mmcfmask.engine.checks.data import check_test_data
from mmcfmask.engine.checks.model import warn_of_random_start
from mmcfmask.engine.checks.outputs import check_out, check_work_dir
from mmcfmask.engine.checks.selection import check_start_images
from mmcfmask.engine.config import load_config
from mmcfmask.engine.hooks import unwrapped
from mmcfmask.engine.launcher import add_run_arguments, apply_run_arguments
from mmcfmask.engine.options import file_name
from mmcfmask.engine.provenance import training_of
from mmcfmask.engine.testing import add_gate, add_second_look, method_name, prepare_test
from mmcfmask.errors import StorageError, one_line
from mmcfmask.evaluation import describe_checkpoint, describe_run, list_notes
from mmcfmask.files import atomic_write, write_json
from mmcfmask.models.inference.relevance_crop import CROP_SCALE
from mmcfmask.output import run_tool
from mmcfmask.reporting import results_table


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a model in and out of distribution')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; without one CLIP is tested zero-shot')
    parser.add_argument(
        '--shifts',
        nargs='*',
        metavar='NAME',
        help='test on these shifts besides the in-distribution set; one whose data '
        'is not there is an error (default: those of the config, without what is not there)',
    )
    parser.add_argument(
        '--knn-gate',
        action='store_true',
        help='let the pre-trained model answer for images that are not like the training '
        'images of the class that the fine-tuned one sees in them (model.gate)',
    )
    parser.add_argument(
        '--relevance-crop',
        nargs='?',
        const=CROP_SCALE,
        type=float,
        metavar='SIDE',
        help='predict from the mean logits of '
        'an image and of the part of it that speaks for the predicted class, SIDE times as large (default: '
        f'{CROP_SCALE}; model.crop_scale)',
    )
    parser.add_argument(
        '--skip-broken', action='store_true', help='leave out images that cannot be read, and count them'
    )
    parser.add_argument('--out', type=file_name, metavar='FILE.json', help='write metrics and protocol to this file')
    parser.add_argument(
        '--predictions', type=file_name, metavar='DIR', help='write the prediction for every image to DIR/<set>.csv'
    )
    add_run_arguments(parser)
    return parser.parse_intermixed_args(argv)  # the checkpoint may stand behind options


def write_predictions(folder: Path, results: dict) -> list[Path]:
    """One CSV per set: path, gt, pred, correct (0 or 1), confidence. Returns their paths."""
    paths = {name: folder / f'{name}.csv' for name in results}
    for name, result in results.items():
        with atomic_write(
            paths[name], 'w', newline='', errors='surrogateescape'
        ) as file:  # names that are no UTF-8 stay as they are
            writer = csv.writer(file)
            writer.writerow(['path', 'gt', 'pred', 'correct', 'confidence'])
            for item in result['details']['predictions']:
                writer.writerow(
                    [item['img_path'], item['gt'], item['pred'], int(item['correct']), f'{item["confidence"]:.6f}']
                )
    return list(paths.values())


@one_line()
def main(argv=None) -> dict:
    args = parse_args(argv)
    with one_line(args.config):
        cfg = load_config(args.config, args.cfg_options)
        if args.knn_gate:
            add_gate(cfg)
        apply_run_arguments(cfg, args)
        check_work_dir(cfg.work_dir)
        if args.out:
            check_out(args.out)
        if args.predictions:
            check_work_dir(args.predictions, 'folder', '--predictions')
        if args.relevance_crop is not None:
            add_second_look(cfg, args.relevance_crop)
        checkpoint = prepare_test(cfg, args.checkpoint, args.shifts, args.skip_broken, args.amp)
        check_test_data(cfg)
        check_start_images(cfg)
    cfg.test_cfg.keep_predictions = args.predictions is not None
    runner = build_runner(cfg)
    if checkpoint:
        check_state_dict(unwrapped(runner.model), checkpoint, args.checkpoint)
    else:
        warn_of_random_start(cfg)
    metrics = runner.test()
    if is_main_process():
        meta = (checkpoint or {}).get('meta') or {}
        run = describe_run(
            runner.test_loop,
            args.config,
            describe_checkpoint(args.checkpoint),
            meta.get('seed'),
            unwrapped(runner.model).data_preprocessor,
            method=method_name(args.config, cfg.model, checkpoint),
            training=training_of(meta),
        )
        run.update({key: meta[key] for key in ('wise_ft_alpha', 'soup') if meta.get(key) is not None})
        accuracies = {name: part['metrics']['top1'] for name, part in run['sets'].items() if 'top1' in part['metrics']}
        id_set = run['id_set'] if run['id_set'] in accuracies else None
        shifts = [name for name in accuracies if name != id_set]
        notes, written, failure = [], [], None
        if accuracies:
            notes += [f'checkpoint: {args.checkpoint or "none"}', *list_notes(run)]
        if cfg.model.get('gate') or cfg.model.get('crop_scale'):
            run['inference'] = dict(gate=bool(cfg.model.get('gate')), crop_scale=cfg.model.get('crop_scale'))
        try:  # before anything is printed
            if args.out:
                write_json(args.out, run)
                written.append(args.out)
            if args.predictions:
                written += write_predictions(Path(args.predictions), runner.test_loop.results)
        except StorageError as error:
            failure = error
        console = Console()
        if accuracies:
            console.print(results_table({run['method']: accuracies}, id_set, shifts))
        for note in [*notes, *(['written: ' + '  '.join(map(str, written))] if written else [])]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        if failure:
            raise SystemExit(f'{args.config}: {failure}')
    end_process_group()
    return metrics


if __name__ == '__main__':
    run_tool(main)
