#!/usr/bin/env python3
"""Run a study: methods x seeds x data sets, in tables, a scatter plot and pictures.

    python tools/study.py studies/shapes.yaml
    python tools/study.py studies/shapes.yaml --list                              # the runs and their states
    python tools/study.py studies/shapes.yaml --only FT 'CFMask*' --seeds 0
    python tools/study.py studies/shapes.yaml --export docs/results/runs/shapes   # metrics.json of the finished runs
    python tools/study.py studies/pacs.yaml --amp --jobs 4 --cfg-options data_root=PACS \\
        model.backbone.pretrained=ViT-B-16.pt

Every run is one of the other tools in a process of its own. Finished runs are kept, the same command resumes an
interrupted one, and a failure does not stop the others. docs/studies.md explains the study file.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import add_cfg_options, count, file_name, run, seed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a study')
    parser.add_argument('study', help='study file (.yaml, .json or .py)')
    parser.add_argument(
        '--out', type=file_name, help='folder of all results (default: as the study says, or work_dirs/<its name>)'
    )
    parser.add_argument(
        '--jobs', type=count, default=1, help='runs at once; they share a GPU if there is only one (default: 1)'
    )
    parser.add_argument(
        '--executor',
        choices=['local', 'slurm'],
        default='local',
        help='where runs go: processes of this machine (default), or jobs of a SLURM cluster',
    )
    parser.add_argument('--seeds', nargs='+', type=seed, help='training seeds, instead of the seeds of the study')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='METHOD',
        help='run only these methods (* matches anything) and the methods that they use',
    )
    parser.add_argument('--datasets', nargs='+', metavar='NAME', help='run only on these data sets of the study')
    parser.add_argument('--list', action='store_true', help='list the runs and their states, and run nothing')
    parser.add_argument(
        '--export',
        type=file_name,
        metavar='FOLDER',
        help='copy the finished results to this folder, without paths of this machine, and run nothing',
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    add_cfg_options(parser, 'of every method')
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    from mmcfmask.experiments.study import run_study

    return run_study(
        args.study,
        out=args.out,
        seeds=args.seeds,
        datasets=args.datasets,
        only=args.only,
        amp=args.amp,
        cfg_options=args.cfg_options,
        jobs=args.jobs,
        list_only=args.list,
        export=args.export,
        executor=args.executor,
    )


if __name__ == '__main__':
    run(main, parse_args())
