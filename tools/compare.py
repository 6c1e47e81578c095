#!/usr/bin/env python3
"""Fine-tune by several methods, test each on the in-distribution set and on every shift, and show them in one table.

    python tools/compare.py                                   # the built-in benchmark: zero-shot, FT, CFMask
    python tools/compare.py --seeds 0 1 2 --out work_dirs/shapes
    python tools/compare.py Zero-shot=configs/pacs/zeroshot_vitb16.py FT=configs/pacs/ft_vitb16.py \\
        CFMask=configs/pacs/cfmask_vitb16.py --out work_dirs/pacs --cfg-options data_root=PATH

Every step is one of the other tools in a process of its own. Finished steps are kept and a killed training resumes when the
command is given again.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections import deque
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmcfmask import __version__
from mmcfmask.engine.launch import check_work_dir, load_config
from mmcfmask.evaluation import notes_of
from mmcfmask.evaluation.protocol import FORMAT
from mmcfmask.visualization import id_ood_points, id_ood_scatter, results_table, save_figure, to_json, to_markdown

TOOLS = Path(__file__).resolve().parent
SHAPES = {name: str(TOOLS.parent / 'configs' / 'shapes' / f'{config}.py')
          for name, config in {'Zero-shot': 'zeroshot', 'FT': 'ft', 'CFMask': 'cfmask'}.items()}
# What mmengine's logger prints: Epoch(train) [2][10/31] … loss: 0.5, and Epoch(test) [3/4].
TRAIN_LINE = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*? loss: ([\d.]+)')
TEST_LINE = re.compile(r'Epoch\(test\)\s+\[\s*(\d+)/(\d+)\]')
SET_LINE = re.compile(r'INFO - (\S+): \d+ images')

console = Console()


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare methods in and out of distribution')
    parser.add_argument('methods', nargs='*', metavar='NAME=CONFIG', help='methods (default: zero-shot, FT and CFMask on the built-in '
                        'benchmark); one whose config has no train_cfg is tested as it comes')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='training seeds (default: 0)')
    parser.add_argument('--out', default='work_dirs/quickstart', help='where everything goes (default: %(default)s)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='override config values of every method, key=value')
    args = parser.parse_args(argv)
    for method in args.methods:
        name, _, config = method.partition('=')
        if not name or not Path(config).is_file():
            parser.error(f'{method!r} is not NAME=CONFIG with an existing config file')
    args.methods = dict(method.split('=', 1) for method in args.methods) or SHAPES
    return args


def run(command: list[str], log: Path, progress: Progress, task: int, epochs: int = 1) -> None:
    """Run one of the tools, its output going to ``log``, and follow it on the progress bar.

    Raises:
        SystemExit: It failed; the end of its output is shown.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    what = progress.tasks[task].description
    tail: deque[str] = deque(maxlen=25)
    with log.open('w') as file, subprocess.Popen(
            [sys.executable, '-u', *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            if match := TRAIN_LINE.search(line):
                epoch, step, steps = map(int, match.groups()[:3])
                progress.update(task, completed=(epoch - 1) * steps + step, total=epochs * steps, description=f'{what}  loss {match[4]}')
            elif match := SET_LINE.search(line):
                progress.update(task, description=f'{what} {match[1]}')
            elif match := TEST_LINE.search(line):
                progress.update(task, completed=int(match[1]), total=int(match[2]))
    if process.returncode:
        console.print(f'\n[bold red]failed:[/] {shlex.join(command)}\n', highlight=False)
        console.print(''.join(tail), markup=False, highlight=False)
        raise SystemExit(f'the whole output is in {log}')
    total = progress.tasks[task].total or 1
    progress.update(task, description=what, completed=total, total=total)


def fingerprint(cfg, seed: int | None, amp: bool) -> str:
    """What determines a result: a finished step is kept as long as this stays the same."""
    weights = cfg.model.backbone.get('pretrained')
    weights = Path(weights).stat().st_size if weights and Path(weights).is_file() else weights
    text = json.dumps([cfg.pretty_text, str(weights), seed, amp, __version__])
    return hashlib.sha256(text.encode()).hexdigest()


def finished(folder: Path, key: str) -> dict | None:
    """metrics.json of a step that was finished with the same settings."""
    path = folder / 'metrics.json'
    if not path.is_file() or not (folder / 'key').is_file() or (folder / 'key').read_text() != key:
        return None
    run = json.loads(path.read_text())
    return run if run.get('format') == FORMAT else None


def accuracies(metrics: dict) -> dict[str, float]:
    """{set: top-1 accuracy}."""
    return {name.split('/')[0]: value for name, value in metrics.items() if name.endswith('/top1') and name != 'ood_average/top1'}


def evaluate(name: str, config: str, seed: int | None, out: Path, args: argparse.Namespace, progress: Progress) -> dict:
    """Train (unless there is nothing to train) and test one method with one seed; returns its metrics.json."""
    overrides = options_for(config, args.cfg_options)
    cfg = load_config(config, parse_options(overrides))
    folder = out / name.lower().replace(' ', '_') / ('start' if seed is None else f'seed{seed}')
    options = ['--work-dir', str(folder), *(['--cfg-options', *overrides] if overrides else [])]
    label = name if seed is None else f'{name} (seed {seed})'
    amp = ['--amp'] if args.amp else []
    key = fingerprint(cfg, seed, args.amp)
    if (tested := finished(folder, key)) is not None:
        console.print(f'{label}: kept from {folder}', highlight=False)
        return tested
    checkpoint = []
    if seed is not None:
        if not (folder / 'key').is_file() or (folder / 'key').read_text() != key:  # other settings: nothing here can be gone on with
            for old in [*folder.glob('*.pth'), folder / 'last_checkpoint', folder / 'metrics.json']:
                old.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'key').write_text(key)
        task = progress.add_task(f'{label}: fine-tuning', total=None)
        run([str(TOOLS / 'train.py'), config, '--seed', str(seed), '--resume', *amp, *options],
            folder / 'train.log', progress, task, cfg.train_cfg.max_epochs)
        best = sorted(folder.glob('best_*.pth'))
        checkpoint = [str(best[-1])] if best else [str(max(folder.glob('epoch_*.pth'), key=lambda path: path.stat().st_mtime))]
    task = progress.add_task(f'{label}: testing on', total=None)
    run([str(TOOLS / 'test.py'), config, *checkpoint, '--out', str(folder / 'metrics.json'), *amp, *options],
        folder / 'test.log', progress, task)
    (folder / 'key').write_text(key)
    return json.loads((folder / 'metrics.json').read_text())


def options_for(config: str, options: list[str]) -> list[str]:
    """The options without those for sections that the config sets to None: a zero-shot config has no training to change."""
    cfg = Config.fromfile(config)
    return [option for option in options if cfg.get(option.partition('.')[0], '') is not None]


def parse_options(options: list[str]) -> dict:
    """``key=value`` strings as the tools read them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *options] if options else []).cfg_options


def main(argv=None) -> dict:
    args = parse_args(argv)
    out = Path(args.out)
    check_work_dir(str(out))
    configs = {name: load_config(config, parse_options(options_for(config, args.cfg_options))) for name, config in args.methods.items()}
    id_set = next(iter(configs.values())).test_cfg.id_set
    tested = {}
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for name, config in args.methods.items():
            seeds = args.seeds if configs[name].get('train_cfg') else [None]
            tested[name] = [evaluate(name, config, seed, out, args, progress) for seed in seeds]
    results = {name: [accuracies(run['metrics']) for run in runs] for name, runs in tested.items()}
    notes = list(dict.fromkeys(note for runs in tested.values() for run in runs for note in notes_of(run)))  # incomplete sets, missing ones
    shifts = [name for name in next(iter(results.values()))[0] if name != id_set]
    console.print(results_table(results, id_set, shifts))
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    written = {
        'table': [out / 'results.md', out / 'results.json'],
        'scatter': [out / 'id_ood.png'],
        'counterfactuals': [],
    }
    (out / 'results.md').write_text(to_markdown(results, id_set, shifts, notes=notes), encoding='utf-8')
    (out / 'results.json').write_text(to_json(results, id_set, shifts), encoding='utf-8')
    save_figure(id_ood_scatter(id_ood_points(results, id_set, shifts)), out / 'id_ood.png')

    teachers = [name for name, cfg in configs.items() if cfg.model.get('teacher')]
    if teachers:
        name = teachers[-1]
        picture = out / 'counterfactuals.png'
        command = [str(TOOLS / 'show_counterfactuals.py'), args.methods[name], '--split', 'train', '--num', '8', '--out', str(picture)]
        with Progress(TextColumn('{task.description}'), console=console, transient=True) as progress:
            task = progress.add_task('drawing counterfactuals', total=1)
            run(command + (['--cfg-options', *args.cfg_options] if args.cfg_options else []), out / 'show.log', progress, task)
        written['counterfactuals'].append(picture)
    for what, paths in written.items():
        if paths:
            console.print(f'{what + ":":17}{"  ".join(map(str, paths))}', highlight=False, soft_wrap=True)
    return results


if __name__ == '__main__':
    main()
