"""From the methods of a study to the jobs of its runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.holdout import follow_run
from ..engine.checks.model import makes_counterfactuals
from ..engine.config import load_config, read_config
from ..errors import ConfigError, MissingFileError, UserError
from ..files import slug
from .commands import RunSettings, draw_commands, run_commands
from .fingerprint import fingerprint
from .jobs import Job
from .methods import Method
from .results import describe_run
from .spec import DatasetSpec, StudySpec

Runs = dict[int | None, Job]  # by seed; None: one run for all seeds


class Plan:
    """The configs and runs of a study, by data set and method.

    Args:
        spec (StudySpec): The study.
        methods (list[Method]): Its methods.
        overrides (Mapping): Config values of every run that take precedence over all others.

    Attributes:
        datasets (dict): Name to data set; one without a name if the study has none.
        configs (dict): (data set, method) to config.
        runs (dict): (data set, method) to seed to job, in the order of the study.

    Raises:
        ConfigError, MissingFileError: A method and its config do not fit together.
    """

    def __init__(self, spec: StudySpec, methods: list[Method], overrides: Mapping[str, Any]) -> None:
        self.spec = spec
        self.out = Path(spec.out)
        self.overrides = overrides
        self.datasets = spec.datasets or {'': DatasetSpec(config='{config}')}
        self.configs: dict[tuple[str, str], Config] = {}
        self.runs: dict[tuple[str, str], Runs] = {}
        check_datasets(methods, list(self.datasets))
        pairs = [
            (dataset, method)
            for dataset in self.datasets
            for method in methods
            if method.datasets is None or dataset in method.datasets
        ]
        for dataset, method in sorted(pairs, key=lambda pair: pair[1].source is not None):  # sources first
            if not method.source:
                self._plan_config(dataset, method)
            elif (dataset, method.source) in self.runs:
                self._plan_derived(dataset, method)
        keys = [(dataset, method.name) for dataset, method in pairs]
        self.runs = {key: self.runs[key] for key in keys if key in self.runs}
        self._check_folders()

    def _plan_config(self, dataset: str, method: Method) -> None:
        """Plan a method that has a config: one run per seed, or one run if nothing is trained."""
        cfg = self._load_config(dataset, method)
        trained = bool(cfg.get('train_cfg'))
        seeds = (method.seeds or self.spec.seeds) if trained else [None]
        self._add_runs(dataset, method, cfg, 'trained' if trained else 'tested', {seed: [] for seed in seeds})

    def _plan_derived(self, dataset: str, method: Method) -> None:
        """Plan a method that uses the runs of another."""
        where, source = f'methods[{method.name!r}]', method.source
        cfg, parents = self.configs[dataset, source], self.runs[dataset, source]
        if None in parents and not method.evaluate:
            raise ConfigError(f'{where} needs a trained method, but {source!r} is not trained')
        seeds = list(parents) if method.seeds is None or None in parents else list(method.seeds)
        for seed in seeds:
            if seed not in parents:
                known = ', '.join(map(str, parents))
                raise ConfigError(f'{where}: {source!r} has no run with seed {seed}, only with {known}')
        depends_on = {seed: [parents[seed]] for seed in seeds}
        if method.soup:
            depends_on = {None: [parents[seed] for seed in seeds]}
        if method.greedy and len(seeds) > 1 and follow_run(copy.deepcopy(cfg.get('val_dataloader') or {}), 0):
            raise ConfigError(
                f'{where}: a greedy soup needs the same held-out images for all seeds, but {source!r} holds out others '
                "for each (holdout.seed='run')"
            )
        self._add_runs(dataset, method, cfg, 'derived', depends_on)

    def _add_runs(
        self, dataset: str, method: Method, cfg: Config, group: str, depends_on: Mapping[int | None, list[Job]]
    ) -> None:
        self.configs[dataset, method.name] = cfg
        config = self.locate_config(dataset, method.source or method.name)
        derivation = [method.wise_ft, method.alpha, method.soup, method.greedy, method.evaluate, *method.options]
        id_set = cfg.test_cfg.id_set
        runs: Runs = {}
        for seed, sources in depends_on.items():
            folder = self.out / dataset / slug(method.name) / ('run' if seed is None else f'seed{seed}')
            settings = RunSettings(method, seed, cfg, config, self.spec.amp, self.spec.keep)
            runs[seed] = Job(
                label=' '.join(filter(None, [dataset, method.name, '' if seed is None else f'(seed {seed})'])),
                product=folder / 'metrics.json',
                key_file=folder / 'key',
                key=fingerprint(cfg, seed, self.spec.amp, derivation, [source.key for source in sources]),
                commands=partial(run_commands, settings),
                leftovers=('*.pth', 'last_checkpoint', 'trained'),
                depends_on=sources,
                group=(dataset, group, method.name),
                report=partial(describe_run, folder / 'metrics.json', id_set),
            )
        self.runs[dataset, method.name] = runs

    def locate_config(self, dataset: str, name: str) -> Path:
        """Where the config of a method is written."""
        return self.out / dataset / slug(name) / 'config.py'

    def _load_config(self, dataset: str, method: Method) -> Config:
        where, entry = f'methods[{method.name!r}]', self.datasets[dataset]
        path = entry.config.replace('{config}', method.config)
        if not Path(path).is_file():
            raise MissingFileError(f'{where}: there is no config {path!r}')
        options = {**self.spec.cfg_options, **entry.cfg_options, **method.cfg_options, **self.overrides}
        try:
            cfg = load_config(path, drop_unused_options(path, options))
        except UserError as error:
            raise ConfigError(f'{where}: {path} with {options}: {error}') from error
        if 'id_set' not in (cfg.get('test_cfg') or {}):
            raise ConfigError(f'{where}: {path} has no test_cfg.id_set, the name of the in-distribution set')
        return cfg

    def _check_folders(self) -> None:
        folders = [job.product.parent for runs in self.runs.values() for job in runs.values()]
        if len(set(folders)) < len(folders):
            twice = next(folder for folder in folders if folders.count(folder) > 1)
            raise ConfigError(
                f'two methods would write to {twice}: give them names that differ in more than case and punctuation'
            )

    def plan_pictures(self, chosen: set[str]) -> list[Job]:
        """Plan the counterfactual images of every mask, fill and value, each by the first chosen method with them."""
        jobs = []
        for dataset in self.datasets:
            variants: dict[str, str] = {}
            for (of_dataset, name), runs in self.runs.items():
                cfg = self.configs[of_dataset, name]
                derived = any(job.depends_on for job in runs.values())
                if of_dataset == dataset and name in chosen and not derived and makes_counterfactuals(cfg.model):
                    variants.setdefault(name_variant(cfg), name)
            for variant, name in variants.items():
                file = 'counterfactuals.png' if len(variants) == 1 else f'counterfactuals_{variant}.png'
                jobs.append(self._plan_picture(dataset, name, variant, self.out / dataset / file))
        return jobs

    def _plan_picture(self, dataset: str, name: str, variant: str, path: Path) -> Job:
        cfg = self.configs[dataset, name]
        return Job(
            label=f'{dataset} picture of {variant}'.strip(),
            product=path,
            key_file=path.with_suffix('.key'),
            key=fingerprint(cfg, None, False),
            commands=partial(draw_commands, cfg, self.locate_config(dataset, name)),
            group=(dataset, 'picture'),
            report=lambda: str(path),
        )


def check_datasets(methods: list[Method], datasets: list[str]) -> None:
    """Raise a ConfigError for a method that names a data set that the study does not have."""
    for method in methods:
        for name in method.datasets or ():
            if name not in datasets:
                raise ConfigError(f'methods[{method.name!r}].datasets: {name!r} is none of {", ".join(datasets)}')


def drop_unused_options(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options of sections that the config sets to None: a zero-shot config trains nothing."""
    cfg = read_config(path)
    return {
        key: value for key, value in options.items() if '.' not in key or cfg.get(key.partition('.')[0], '') is not None
    }


def name_variant(cfg: Config) -> str:
    """Name the counterfactual images of a config by mask, fill and value, such as ``object_single``."""
    settings = {'mask': 'object', 'fill': 'single', 'value': None, **(cfg.model.get('data_preprocessor') or {})}
    value = [] if settings['value'] is None else [f'{settings["value"]:g}']
    changes = [change for change in ('views', 'color_mixing') if settings.get(change)]
    return '_'.join([settings['mask'], settings['fill'], *value, *changes])
