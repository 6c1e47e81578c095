"""A study: methods x seeds x data sets, each trained and tested, collected in tables and figures.

:mod:`.spec` says what a study file may contain, :mod:`.plan` makes the jobs, :mod:`.scheduler` runs them,
:mod:`.results` makes the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from rich.console import Console

from .. import __version__
from ..engine.checks.model import SLOW_BFLOAT16
from ..engine.checks.outputs import check_work_dir
from ..engine.options import parse_options
from ..errors import ConfigError, UserError
from ..files import locked, remove_leftovers
from ..messages import near_names
from ..precision import multiplies_bfloat16
from ..reporting.runs import Run, read_run
from ..reporting.summary import Summary
from .durations import read_durations
from .export import export_results
from .fingerprint import read_version
from .jobs import Executor, Job
from .listing import print_states
from .local import LocalExecutor
from .methods import expand_methods, select_methods
from .plan import Plan
from .results import write_average, write_few_shot, write_results
from .scheduler import run_jobs
from .slurm import SlurmExecutor
from .spec import StudySpec, parse, read_study


class Study:
    """A study that is checked and planned; nothing has run yet.

    Args:
        spec (StudySpec): What the study file says.
        overrides (Mapping, optional): Config values of every run that take precedence over the values in ``spec``.
        only (Sequence[str], optional): Patterns of names. Other methods do not run, except those that the chosen ones
            use. The tables still show their finished runs.

    Raises:
        ConfigError, MissingFileError: A mistake in an entry, a config or a pattern.
    """

    def __init__(
        self, spec: StudySpec, overrides: Mapping[str, Any] | None = None, only: Sequence[str] | None = None
    ) -> None:
        self.spec = spec
        methods = expand_methods(spec.methods)
        self.chosen = select_methods(methods, only)
        self.plan = Plan(spec, methods, overrides or {})

    @property
    def jobs(self) -> list[Job]:
        """All jobs: the runs by data set and method, each after the trials that it needs, then the pictures."""
        runs = [job for (_, name), jobs in self.plan.runs.items() if name in self.chosen for job in jobs.values()]
        runs = list(dict.fromkeys(job for run in runs for job in [*(t for t in run.depends_on if t.serves), run]))
        return runs + (self.plan.plan_pictures(self.chosen) if self.spec.pictures else [])

    def run(self, console: Console, jobs: int = 1, executor: str = 'local') -> dict[str, str]:
        """Run what is not finished, ``jobs`` at once, then write the results.

        Args:
            console: Where to print.
            jobs: Runs at once.
            executor: 'local': processes of this machine; 'slurm': jobs of a cluster.

        Returns:
            dict[str, str]: Label to reason, of the jobs that failed.

        Raises:
            ConfigError: The folder holds runs of another version of mmcfmask.
            StorageError: Another study runs in the folder, or it cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM.
        """
        planned = self.jobs
        self.check_versions(planned)
        with locked(self.plan.out, 'a study'):
            folders = {self.plan.out / dataset for dataset in self.plan.datasets}
            for folder in folders | {job.product.parent for job in planned}:
                remove_leftovers(folder)
            starter: Executor = LocalExecutor(jobs)
            if executor == 'slurm':
                starter = SlurmExecutor(jobs, self.plan.out / 'slurm', self.spec.slurm)
            failed = run_jobs(planned, console, starter, history=self.plan.out)
            for job in planned:
                if job.is_finished():
                    job.refresh(job)
            self.write_results(console)
        if failed:
            console.print(f'\n{len(failed)} failed:', style='bold red', highlight=False)
            for label, reason in failed.items():
                console.print(f'  {label}: {reason}', highlight=False, markup=False, soft_wrap=True)
            console.print('The same command tries them again.', highlight=False)
        return failed

    def check_versions(self, jobs: Sequence[Job]) -> None:
        """Raise a ConfigError if a job has results of another version, which are neither continued nor deleted."""
        for job in jobs:
            key = job.read_key()
            if key is not None and (version := read_version(key)) != __version__:
                raise ConfigError(
                    f'{job.product.parent} holds a run of mmcfmask {version}, but this is {__version__}: choose '
                    'another folder with --out, or delete it (tools/report.py still reads the old results)'
                )

    def find_finished(self, dataset: str) -> dict[str, list[Run]]:
        """The finished runs of a data set by method."""
        found = {
            name: [read_run(job.product) for job in jobs.values() if job.is_finished()]
            for (of_dataset, name), jobs in self.plan.runs.items()
            if of_dataset == dataset
        }
        return {name: runs for name, runs in found.items() if runs}

    def write_results(self, console: Console) -> None:
        """Print and write the table and the figure of every data set that has finished runs; of a few-shot study, also
        the results against the number of images."""
        curves: dict[str, dict[int, Summary]] = {}
        for dataset, planned in self.plan.datasets.items():
            configs = [cfg for (of_dataset, _), cfg in self.plan.configs.items() if of_dataset == dataset]
            if finished := self.find_finished(dataset):
                order = dict.fromkeys(name for cfg in configs for name in cfg.test_dataloader)
                summary = write_results(
                    console,
                    self.plan.out / dataset,
                    finished,
                    configs[0].test_cfg.id_set,
                    list(order),
                    title=dataset,
                    pictures=self.spec.pictures,
                )
                if summary is not None and planned.per_class is not None:
                    curves.setdefault(planned.dataset, {})[planned.per_class] = summary
        for dataset, summaries in curves.items():
            write_few_shot(console, self.plan.out, dataset, summaries)
        if self.spec.average_of:
            finished = {dataset: self.find_finished(dataset) for dataset in self.plan.datasets}
            write_average(console, self.plan.out, self.spec.average_of, finished)


def run_study(
    path: str,
    out: str | None = None,
    seeds: Sequence[int] | None = None,
    datasets: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    amp: bool = False,
    cfg_options: Sequence[str] = (),
    jobs: int = 1,
    list_only: bool = False,
    export: str | None = None,
    executor: str = 'local',
) -> int:
    """Run a study file; the body of ``tools/study.py``.

    Args:
        path: The study file.
        out, seeds: Replace the values of the file.
        datasets: Names of data sets of the file to run on (default: all).
        only: Patterns of methods to run (default: all).
        amp: Run in bfloat16, whatever the file says.
        cfg_options: ``key=value`` texts that override the configs of all methods.
        jobs: Runs at once.
        list_only: List the runs and their states, and run nothing.
        export: Copy the finished results to this folder, without paths of this machine, and run nothing.
        executor: 'local' or 'slurm'.

    Returns:
        The exit code: 1 if a run failed.

    Raises:
        UserError: A mistake; the message names the file.
        SystemExit: The user stopped the study.
    """
    try:
        spec = read_study(path)
        changes = dict(out=out, seeds=list(seeds or ()), datasets=select_datasets(spec, datasets), amp=amp)
        spec = spec.model_copy(update={key: value for key, value in changes.items() if value})
        with Console(stderr=True).status('Reading the configs of the study'):
            study = Study(spec, parse_options(cfg_options), only)
        check_work_dir(spec.out, 'folder', '--out')
    except UserError as error:
        raise type(error)(str(error) if path in str(error) else f'{path}: {error}') from error
    if list_only:
        planned = study.jobs
        print_states(Console(), study.plan, planned, read_durations(Path(spec.out)))
        study.check_versions(planned)
        return 0
    if export:
        written = export_results(study.jobs, Path(spec.out), Path(export))
        print(f'{len(written)} files written to {export}')
        return 0
    return run_with_messages(study, jobs, executor)


def compare(
    methods: Mapping[str, str],
    out: str,
    seeds: Sequence[int] = (0,),
    amp: bool = False,
    cfg_options: Sequence[str] = (),
) -> int:
    """Train and test some methods; the body of ``tools/compare.py``. It is a study without a file.

    Args:
        methods: Name to config.
        out: Folder of all results.
        seeds: Training seeds.
        amp: Run in bfloat16.
        cfg_options: ``key=value`` texts that override the configs of all methods.

    Returns:
        The exit code: 1 if a run failed.

    Raises:
        UserError: A mistake.
        SystemExit: The user stopped it.
    """
    spec = parse(StudySpec, dict(methods=methods, out=out, seeds=list(seeds), amp=amp, keep='all'))
    study = Study(spec, parse_options(cfg_options))
    check_work_dir(out, 'folder', '--out')
    return run_with_messages(study)


def run_with_messages(study: Study, jobs: int = 1, executor: str = 'local') -> int:
    """Run a study for a command line; 1 if a job failed."""
    console = Console()
    if study.spec.amp and not multiplies_bfloat16(get_device()):
        console.print(f'--amp: {SLOW_BFLOAT16}', style='yellow')
    try:
        return int(bool(study.run(console, jobs, executor)))
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command resumes the study') from None


def select_datasets(spec: StudySpec, names: Sequence[str] | None) -> dict[str, Any] | None:
    """The named data sets of a study; None for all.

    Raises:
        ConfigError: The study has no data set of this name.
    """
    for name in names or ():
        if name not in spec.datasets:
            hint = near_names(name, list(spec.datasets)) or f' There are {", ".join(spec.datasets) or "none"}'
            raise ConfigError(f'no data set is named {name!r}.{hint}')
    return {name: spec.datasets[name] for name in names} if names else None
