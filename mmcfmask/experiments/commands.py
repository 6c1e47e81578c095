"""The commands of a study's jobs: which tools a method runs, with which arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmpretrain.registry import METRICS

from ..engine.checkpoints import LAST, best_checkpoint, chosen_checkpoint, read_checkpoint
from ..engine.test_loop import list_metrics
from ..engine.values import is_a
from ..engine.wise_ft_results import DEFAULT_ALPHA
from ..evaluation import ShiftAccuracy
from ..files import write_json, write_text
from ..reporting.predictions import FOLDER as PREDICTIONS
from .jobs import Command, Job, JobError, read_tail
from .methods import Method
from .tuning import Setting, TunedConfig

DIVERGED = re.compile(r'.* not finite.*')  # of mmcfmask.errors.NumericalError
TOOLS = Path(__file__).resolve().parents[1] / '.mim' / 'tools'


@dataclass
class RunSettings:
    """Settings of one run of a method.

    Attributes:
        method (Method): The method.
        seed (int, optional): The training seed; None if there is one run for all seeds.
        cfg (Config): The config, of the method or of its source; not tuned.
        config (Path): Where the config is written for the tools.
        amp (bool): Whether to run in bfloat16.
        keep (str): 'best' or 'all' checkpoints of a training.
        tuned (TunedConfig, optional): What replaces ``cfg`` once the trials are finished.
    """

    method: Method
    seed: int | None
    cfg: Config
    config: Path
    amp: bool
    keep: str
    tuned: TunedConfig | None = None


def run_commands(run: RunSettings, job: Job) -> Iterator[Command]:
    """Yield the commands of a run. The product is written after the last one."""
    if run.tuned:
        run = replace(run, cfg=run.tuned.read_config())
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
    more = {'tuned': run.tuned.tuning.describe()} if run.tuned else {}
    sign_metrics(_test_output(job), job.product, run.method.name, run.seed, job.full_key, **more)


def _fine_tune(run: RunSettings, job: Job) -> Iterator[Command]:
    folder = job.product.parent
    trained = folder / 'trained'  # exists once the training is finished
    if not is_trained(folder):
        take_trial(run, folder)
    if not is_trained(folder):
        trained.unlink(missing_ok=True)  # its checkpoint is gone
        arguments = tool('train.py', run.config, '--seed', run.seed, '--resume', *_shared_options(run, job))
        yield Command('fine-tuning', arguments, folder / 'train.log', 0.85, run.cfg.train_cfg.max_epochs)
        write_text(trained, '')
    yield _test(run, job, find_checkpoint(folder), share=0.15)
    if run.keep == 'best' and best_checkpoint(folder):
        delete_checkpoints(folder, keep=find_checkpoint(folder))  # a killed training may have left an older best one


def is_trained(folder: Path) -> bool:
    """Whether a training is finished and its checkpoint is still there."""
    return (folder / 'trained').is_file() and any(folder.glob('*.pth'))


def take_trial(run: RunSettings, folder: Path) -> None:
    """Move the training of the chosen trial into the folder of the run, if it was the same training."""
    tuning = run.tuned.tuning if run.tuned else None
    best = tuning.find_best() if tuning else None
    if tuning is None or best is None or tuning.method != run.method.name or not tuning.repeats(run.seed):
        return
    source = tuning.trials[best].product.parent
    checkpoint = best_checkpoint(source)
    if checkpoint is None:  # of another machine, or taken already
        return
    for path in [checkpoint, *(path for path in source.iterdir() if path.is_dir() or path.suffix == '.log')]:
        path.replace(folder / path.name)
    write_text(folder / 'trained', '')
    for trial in tuning.trials:
        delete_checkpoints(trial.product.parent)


def delete_checkpoints(folder: Path, keep: Path | None = None) -> None:
    """Delete the checkpoints of a training, except one."""
    for old in [*(path for path in folder.glob('*.pth') if path != keep), folder / LAST]:
        old.unlink(missing_ok=True)


def trial_commands(
    cfg: Config, config: Path, method: str, setting: Setting, seed: int, amp: bool, keep: bool, job: Job
) -> Iterator[Command]:
    """Yield the training of a trial, then write its best validation and delete its checkpoints; with ``keep`` the best
    one stays, for a run that would be the same training (:func:`take_trial`)."""
    folder = job.product.parent
    result, log = folder / 'best.json', folder / 'train.log'  # the former exists once the training is finished
    if not result.is_file():
        write_config(cfg, config)
        options = ['--seed', seed, '--resume', '--work-dir', folder, *(['--amp'] if amp else [])]
        arguments = tool('train.py', config, *options)
        command = Command('tuning', arguments, log, epochs=cfg.train_cfg.max_epochs, tolerates=DIVERGED)
        yield command
        found = describe_divergence(log) if command.failed else read_validation(folder)
        write_json(result, dict(method=method, seed=seed, setting=setting, **found))
    delete_checkpoints(folder, keep=best_checkpoint(folder) if keep else None)
    sign_metrics(result, job.product, method, seed, job.full_key)


def describe_divergence(log: Path) -> dict[str, Any]:
    """What :func:`read_validation` gives for a training whose loss became infinite: no metrics."""
    found = DIVERGED.search(read_tail(log))
    return dict(metric=None, rule=None, metrics=None, epoch=None, diverged=found[0] if found else 'diverged')


def read_validation(folder: Path) -> dict[str, Any]:
    """The best validation of a finished training: ``metric`` and ``rule`` by which it is the best, all its ``metrics``,
    and its ``epoch``.

    Raises:
        JobError: There is none.
    """
    path = best_checkpoint(folder)
    meta = read_checkpoint(str(path))['meta'] if path else {}
    best = meta.get('best') or {}
    if 'metrics' not in best:
        raise JobError(f'the training in {folder} wrote no best checkpoint: it needs a validation')
    return dict({key: best[key] for key in ('metric', 'rule', 'metrics')}, epoch=meta.get('epoch'), diverged=None)


def describe_trial(path: Path) -> str:
    """Describe a trial.json in one line."""
    trial = json.loads(path.read_text(encoding='utf-8'))
    if trial['metrics'] is None:
        return 'diverged'
    return f'{trial["metric"]} {trial["metrics"][trial["metric"]]:.2f} on validation images'


def _interpolate(run: RunSettings, job: Job) -> Iterator[Command]:
    alpha, folder = f'{run.method.alpha:g}', job.product.parent
    out = folder / 'wise_ft'
    metrics = out / 'metrics.json'
    metrics.unlink(missing_ok=True)  # of another alpha, from a killed run
    checkpoint = find_checkpoint(job.depends_on[0].product.parent)
    options = ['--alphas', alpha, '--save', alpha, '--out', out, *_shared_options(run, job)]
    options += _predictions(run, job) if run.method.alpha == DEFAULT_ALPHA else []
    yield Command(
        'interpolating', tool('wise_ft.py', run.config, checkpoint, *options), folder / 'wise_ft.log', share=0.8
    )
    if metrics.is_file():  # tools/wise_ft.py writes it at the default alpha
        metrics.replace(_test_output(job))
    else:
        yield _test(run, job, out / f'wise_ft_{alpha}.pth', share=0.2)


def _average(run: RunSettings, job: Job) -> Iterator[Command]:
    folder = job.product.parent
    soup, ingredients = (
        folder / 'soup.pth',
        [find_checkpoint(other.product.parent) for other in job.depends_on if not other.serves],
    )
    kind = ['--greedy'] if run.method.greedy else ['--stock'] if run.method.stock else []
    arguments = tool('soup.py', run.config, *ingredients, '--out', soup, *kind)
    yield Command('averaging', arguments, folder / 'soup.log', share=0.4)
    yield _test(run, job, soup, share=0.6)


def _test(run: RunSettings, job: Job, *arguments: str | Path, share: float = 1.0) -> Command:
    options = ['--out', _test_output(job), *_predictions(run, job), *_shared_options(run, job)]
    arguments = tool('test.py', run.config, *arguments, *options)
    return Command('testing on', arguments, job.product.parent / 'test.log', share)


def _predictions(run: RunSettings, job: Job) -> list[str]:
    """The option that writes predictions for single images, where the metrics keep them."""
    return ['--predictions', str(job.product.parent / PREDICTIONS)] if keeps_predictions(run.cfg) else []


def keeps_predictions(cfg: Config) -> bool:
    """Whether the metrics of every test set can keep the predictions for single images."""
    metrics = [list_metrics(name, cfg.test_evaluator) for name in cfg.test_dataloader]
    return all(any(is_a(ShiftAccuracy, metric['type'], METRICS) for metric in of_set) for of_set in metrics)


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
    """:func:`mmcfmask.engine.checkpoints.chosen_checkpoint`.

    Raises:
        JobError: There is none.
    """
    found = chosen_checkpoint(folder)
    if found is None:
        raise JobError(f'there is no checkpoint in {folder}')
    return found


def update_tuning(tuned: TunedConfig, job: Job) -> None:
    """Let the product of a finished run say how its setting was chosen now, such as out of a wider grid."""
    if tuned.choose() is None:
        return
    content = json.loads(job.product.read_text(encoding='utf-8'))
    now = json.loads(json.dumps(dict(tuned=tuned.tuning.describe(), key=job.full_key)))
    if any(content.get(name) != value for name, value in now.items()):
        write_text(job.key_file, job.full_key)
        write_json(job.product, {**content, **now})


def sign_metrics(written: Path, path: Path, method: str, seed: int | None, key: str, **more: Any) -> None:
    """Add the names of the method and the seed, the key of the job and ``more`` to an output, and move it to
    ``path``."""
    metrics = json.loads(written.read_text(encoding='utf-8', errors='surrogateescape'))
    write_json(written, {**metrics, 'method': method, 'seed': seed, **more, 'key': key})
    written.replace(path)
