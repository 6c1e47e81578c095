#!/usr/bin/env python3
"""Run a study: methods x seeds x data sets, in tables, a scatter and pictures.

    python tools/study.py studies/shapes.yaml
    python tools/study.py studies/shapes.yaml --list                              # what is to be done, what is finished
    python tools/study.py studies/pacs.yaml --amp --jobs 4 --cfg-options data_root=PACS
    model.backbone.pretrained=ViT-B-16.pt python tools/study.py studies/shapes.yaml --only FT 'CFMask*' --seeds 0

Every run is one of the other tools in a process of its own. Finished runs are kept, a killed one resumes when the
command is given again, and one that fails does not stop the others. What a study file says: docs/studies.md.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from mmcfmask.engine.checks.outputs import check_work_dir
from mmcfmask.engine.options import add_cfg_options, count, file_name, seed
from mmcfmask.errors import ConfigError, one_line
from mmcfmask.experiments.study import Study, load_study, run_or_exit
from mmcfmask.output import run_tool


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run a study')
    parser.add_argument('study', help='study file (.yaml, .json or .py)')
    parser.add_argument(
        '--out', type=file_name, help='where everything goes (default: what the study says, else work_dirs/<its name>)'
    )
    parser.add_argument(
        '--jobs', type=count, default=1, help='runs at once; several share a GPU if its memory allows (default: 1)'
    )
    parser.add_argument('--seeds', nargs='+', type=seed, help='training seeds, in place of those of the study')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='METHOD',
        help='these methods (* stands for anything), and what they are derived from',
    )
    parser.add_argument('--datasets', nargs='+', metavar='NAME', help='run on these data sets of the study')
    parser.add_argument('--list', action='store_true', help='show the runs and whether they are finished; run nothing')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    add_cfg_options(parser, 'of every method')
    args = parser.parse_args(argv)
    return args


@one_line()
def main(argv=None) -> None:
    args = parse_args(argv)
    console = Console()
    with one_line(args.study):
        study = load_study(args.study)
        if args.datasets:
            known = study.get('datasets') or {}
            unknown = [name for name in args.datasets if name not in known]
            if unknown:
                raise ConfigError(
                    f'no data set is named {unknown[0]!r}: there are {", ".join(known) or "none with a name"}'
                )
            study['datasets'] = {name: known[name] for name in args.datasets}
        if args.seeds:
            study['seeds'] = args.seeds
        study = Study(
            **{
                **study,
                'out': args.out or study['out'],
                'amp': args.amp or study.get('amp', False),
                'only': args.only,
                'overrides': args.cfg_options,
            }
        )
        check_work_dir(str(study.out), 'folder', '--out')
    if args.list:
        for job in study.jobs:
            console.print(
                f'{"finished" if job.is_finished() else "begun" if job.has_key() else "to do":9} {job.label}',
                highlight=False,
            )
        return
    run_or_exit(study, console, args.jobs)


if __name__ == '__main__':
    run_tool(main)
