"""The commands of a study's jobs: which tools a method runs, with which arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.checkpoints import best_checkpoint
from ..files import write_json, write_text
from .jobs import Command, Job, JobError
from .methods import Method

TOOLS = Path(__file__).resolve().parents[1] / '.mim' / 'tools'


@dataclass
class RunSettings:
    """Settings of one run of a method.

    Attributes:
        method (Method): The method.
        seed (int, optional): The training seed; None if there is one run for all seeds.
        cfg (Config): The config, of the method or of its source.
        config (Path): Where the config is written for the tools.
        amp (bool): Whether to run in bfloat16.
        keep (str): 'best' or 'all' checkpoints of a training.
    """

    method: Method
    seed: int | None
    cfg: Config
    config: Path
    amp: bool
    keep: str


def run_commands(run: RunSettings, job: Job) -> Iterator[Command]:
    """Yield the commands of a run. The product is written after the last one."""
    write_config(run.cfg, run.config)
    if run.method.wise_ft:
        yield from _interpolate(run, job)
    elif run.method.evaluate:
        checkpoints = [] if run.seed is None else [find_checkpoint(job.depends_on[0].product.parent)]
        yield _test(run, job, *checkpoints, *run.method.options)
    elif run.method.soup:
        yield from _average(run, job)
    elif run.seed is None:
        yield _test(run, job)
    else:
        yield from _fine_tune(run, job)
    sign_metrics(_test_output(job), job.product, run.method.name, run.seed)


def _fine_tune(run: RunSettings, job: Job) -> Iterator[Command]:
    folder = job.product.parent
    trained = folder / 'trained'  # exists once the training is finished
    if not trained.is_file():
        arguments = tool('train.py', run.config, '--seed', run.seed, '--resume', *_shared_options(run, job))
        yield Command('fine-tuning', arguments, folder / 'train.log', 0.85, run.cfg.train_cfg.max_epochs)
        write_text(trained, '')
    yield _test(run, job, find_checkpoint(folder), share=0.15)
    if run.keep == 'best' and best_checkpoint(folder):
        tested = find_checkpoint(folder)  # a killed training may have left an older best one too
        for old in [*(path for path in folder.glob('*.pth') if path != tested), folder / 'last_checkpoint']:
            old.unlink(missing_ok=True)


def _interpolate(run: RunSettings, job: Job) -> Iterator[Command]:
    alpha, folder = f'{run.method.alpha:g}', job.product.parent
    out = folder / 'wise_ft'
    metrics = out / 'metrics.json'
    metrics.unlink(missing_ok=True)  # of another alpha, from a killed run
    checkpoint = find_checkpoint(job.depends_on[0].product.parent)
    options = ['--alphas', alpha, '--save', alpha, '--out', out, *_shared_options(run, job)]
    yield Command(
        'interpolating', tool('wise_ft.py', run.config, checkpoint, *options), folder / 'wise_ft.log', share=0.8
    )
    if metrics.is_file():  # tools/wise_ft.py writes it at the default alpha
        metrics.replace(_test_output(job))
    else:
        yield _test(run, job, out / f'wise_ft_{alpha}.pth', share=0.2)


def _average(run: RunSettings, job: Job) -> Iterator[Command]:
    folder = job.product.parent
    soup, ingredients = folder / 'soup.pth', [find_checkpoint(other.product.parent) for other in job.depends_on]
    greedy = ['--greedy'] if run.method.greedy else []
    arguments = tool('soup.py', run.config, *ingredients, '--out', soup, *greedy)
    yield Command('averaging', arguments, folder / 'soup.log', share=0.4)
    yield _test(run, job, soup, share=0.6)


def _test(run: RunSettings, job: Job, *arguments: str | Path, share: float = 1.0) -> Command:
    options = ['--out', _test_output(job), *_shared_options(run, job)]
    arguments = tool('test.py', run.config, *arguments, *options)
    return Command('testing on', arguments, job.product.parent / 'test.log', share)


def _test_output(job: Job) -> Path:
    """What tools/test.py writes. It becomes the product when it is complete."""
    return job.product.parent / 'test.json'


def _shared_options(run: RunSettings, job: Job) -> list[str]:
    return ['--work-dir', str(job.product.parent), *(['--amp'] if run.amp else [])]


def draw_commands(cfg: Config, config: Path, job: Job) -> Iterator[Command]:
    """Yield the command that draws the counterfactual images of a config."""
    write_config(cfg, config)
    arguments = tool('show_counterfactuals.py', config, '--split', 'train', '--num', 8, '--out', job.product)
    yield Command('drawing', arguments, job.product.with_suffix('.log'))


def tool(name: str, *arguments: Any) -> list[str]:
    """A script of tools/ and its arguments."""
    return [str(TOOLS / name), *map(str, arguments)]


def write_config(cfg: Config, path: Path) -> None:
    """Write a config in one step, because another job may be reading the same file."""
    write_text(path, cfg.pretty_text)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint of a training to test: the best on the held-out images, or else the last.

    Raises:
        JobError: There is none.
    """
    epochs = folder.glob('epoch_*.pth')
    found = best_checkpoint(folder) or max(epochs, key=lambda path: path.stat().st_mtime, default=None)
    if found is None:
        raise JobError(f'there is no checkpoint in {folder}')
    return found


def sign_metrics(written: Path, path: Path, method: str, seed: int | None) -> None:
    """Add the names of the method and the seed to the output of a test, and move it to ``path``."""
    metrics = json.loads(written.read_text(encoding='utf-8', errors='surrogateescape'))
    write_json(written, {**metrics, 'method': method, 'seed': seed})
    written.replace(path)
