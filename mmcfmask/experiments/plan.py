"""From the methods of a study to the jobs of its runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.holdout import follow_run
from ..engine.checks.model import makes_counterfactuals, shown_settings
from ..engine.config import ConfigReader, find_file, load_config
from ..errors import ConfigError, MissingFileError, UserError
from ..files import slug
from .commands import (
    RunSettings,
    describe_trial,
    draw_commands,
    is_trained,
    run_commands,
    trial_commands,
    update_tuning,
)
from .few_shot import check_no_other_subset, few_shot_options, plan_sets
from .fingerprint import fingerprint, fingerprint_trial
from .jobs import Job
from .methods import Method
from .results import describe_run
from .spec import DatasetSpec, StudySpec, TuneSpec
from .tuning import FOLDER, Setting, TunedConfig, Tuning, check_can_be_tuned, check_keys, list_settings, name_trial

Runs = dict[int | None, Job]  # by seed; None: one run for all seeds


class Plan:
    """The configs and runs of a study, by data set and method.

    Args:
        spec (StudySpec): The study.
        methods (list[Method]): Its methods.
        overrides (Mapping): Config values of every run that take precedence over all others.

    Attributes:
        datasets (dict): Name of a folder to data set; one without a name if the study has none, and one for every
            number of ``per_class``.
        configs (dict): (data set, method) to config.
        runs (dict): (data set, method) to seed to job, in the order of the study.
        tuned (dict): (data set, method) to the configs of a method that is tuned, or takes another's choice.

    Raises:
        ConfigError, MissingFileError: A method and its config do not fit together.
    """

    def __init__(self, spec: StudySpec, methods: list[Method], overrides: Mapping[str, Any]) -> None:
        self.spec = spec
        self.out = Path(spec.out)
        self.overrides = overrides
        self._read = ConfigReader()
        self.datasets = plan_sets(spec.datasets or {'': DatasetSpec(config='{config}')}, spec.per_class)
        self.configs: dict[tuple[str, str], Config] = {}
        self.runs: dict[tuple[str, str], Runs] = {}
        self.tuned: dict[tuple[str, str], TunedConfig] = {}
        self.tune = spec.tune or TuneSpec()
        check_datasets(methods, list(dict.fromkeys(planned.dataset for planned in self.datasets.values())))
        pairs = [
            (dataset, method)
            for dataset, planned in self.datasets.items()
            for method in methods
            if method.datasets is None or planned.dataset in method.datasets
        ]
        for dataset, method in sorted(pairs, key=lambda pair: find_rank(pair[1])):
            if not method.source:
                self._plan_config(dataset, method)
            elif (dataset, method.source) in self.runs:
                self._plan_derived(dataset, method)
        keys = [(dataset, method.name) for dataset, method in pairs]
        self.runs = {key: self.runs[key] for key in keys if key in self.runs}
        self._check_folders()
        if spec.average_of and spec.per_class:
            raise ConfigError('average_of is a mean over data sets, and per_class makes several of each: leave out one')
        for (dataset, method), cfg in self.configs.items() if spec.average_of else ():
            if spec.average_of not in cfg.test_dataloader:
                raise ConfigError(
                    f'average_of={spec.average_of!r} is no test set of {method} on {dataset or "the data set"}: '
                    f'{", ".join(cfg.test_dataloader)}'
                )

    def _plan_config(self, dataset: str, method: Method) -> None:
        """Plan a method that has a config: one run per seed, or one run if nothing is trained."""
        cfg = self._load_config(dataset, method)
        trained = bool(cfg.get('train_cfg'))
        if trained:
            self._plan_tuning(dataset, method, cfg)
        elif method.grid or method.tuned_as:
            raise ConfigError(f'methods[{method.name!r}] cannot be tuned: its config trains nothing')
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
        derivation += ['stock'] if method.stock else []
        id_set = cfg.test_cfg.id_set
        tuned = self.tuned.get((dataset, method.source or method.name))
        trials = tuned.tuning.trials if tuned else []
        runs: Runs = {}
        for seed, sources in depends_on.items():
            folder = self.out / dataset / slug(method.name) / ('run' if seed is None else f'seed{seed}')
            settings = RunSettings(method, seed, cfg, config, self.spec.amp, self.spec.keep, tuned)
            runs[seed] = Job(
                label=' '.join(filter(None, [dataset, method.name, '' if seed is None else f'(seed {seed})'])),
                product=folder / 'metrics.json',
                key_file=folder / 'key',
                key=fingerprint(cfg, seed, self.spec.amp, derivation, [source.key for source in sources]),
                commands=partial(run_commands, settings),
                leftovers=('*.pth', 'last_checkpoint', 'trained'),
                depends_on=[*sources, *trials],
                group=(dataset, group, method.name),
                report=partial(describe_run, folder / 'metrics.json', id_set),
                choose=tuned.choose if tuned else lambda: '',
                basis=tuned.tuning.basis if tuned else '',
                refresh=partial(update_tuning, tuned) if tuned else lambda job: None,
                is_usable=partial(is_trained, folder) if group == 'trained' else lambda: True,
            )
        self.runs[dataset, method.name] = runs

    def _plan_tuning(self, dataset: str, method: Method, cfg: Config) -> None:
        """Plan the trials of a trained method, or let it take the choice of another."""
        where = f'methods[{method.name!r}]'
        if method.tuned_as not in (None, method.name):
            if (dataset, method.tuned_as) not in self.tuned:
                raise ConfigError(
                    f'{where}.tuned_as: {method.tuned_as!r} is not tuned{f" on {dataset}" if dataset else ""}: it '
                    'needs a grid, its own or that of tune'
                )
            tuning = self.tuned[dataset, method.tuned_as].tuning
        else:
            grid = self.tune.grid if method.grid is None else method.grid
            if not grid:
                return
            if slug(method.name) == FOLDER:
                raise ConfigError(f'{where}: the folder {FOLDER} is for trials: give the method another name')
            tuning = self._plan_trials(dataset, method, grid, list_settings(grid, f'the grid of {where}'))
        check_can_be_tuned(where, cfg, self.tune.metric)
        check_keys(where, tuning.grid, method.cfg_options, 'its cfg_options')
        check_keys(where, tuning.grid, self.overrides, '--cfg-options')
        configs = [self._load_config(dataset, method, setting) for setting in tuning.settings]
        self.tuned[dataset, method.name] = TunedConfig(tuning, configs)

    def _plan_trials(
        self, dataset: str, method: Method, grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Setting]
    ) -> Tuning:
        tuning = Tuning(method.name, grid, list(settings.values()), [], self.tune)
        keep = any(map(tuning.repeats, method.seeds or self.spec.seeds))
        for name, setting in settings.items():
            cfg = self._load_config(dataset, method, {**self.tune.cfg_options, **setting})
            path = name_trial(self.out / dataset, method.name, name)
            tuning.trials.append(
                Job(
                    label=' '.join(filter(None, [dataset, method.name, f'(tuning, {name})'])),
                    product=path,
                    key_file=path.with_name('key'),
                    key=fingerprint_trial(cfg, self.tune.seed, self.spec.amp),
                    commands=partial(
                        trial_commands,
                        cfg,
                        path.parent.parent / f'{name}.py',
                        method.name,
                        setting,
                        self.tune.seed,
                        self.spec.amp,
                        keep,
                    ),
                    leftovers=('*.pth', 'last_checkpoint', 'best.json'),
                    group=(dataset, 'trial', method.name),
                    report=partial(describe_trial, path),
                    serves=True,
                )
            )
        return tuning

    def locate_config(self, dataset: str, name: str) -> Path:
        """Where the config of a method is written."""
        return self.out / dataset / slug(name) / 'config.py'

    def _load_config(self, dataset: str, method: Method, setting: Mapping[str, Any] | None = None) -> Config:
        where, (_, entry, per_class) = f'methods[{method.name!r}]', self.datasets[dataset]
        path = find_file(entry.config.replace('{config}', method.config))
        if not Path(path).is_file():
            raise MissingFileError(f'{where}: there is no config {path!r}')
        given = [self.spec.cfg_options, entry.cfg_options, method.cfg_options, setting or {}, self.overrides]
        options = {key: value for part in given for key, value in part.items()}
        try:
            options = drop_unused_options(self._read(path), options)
            cfg = load_config(path, options, read=self._read)
            if per_class is not None:
                check_no_other_subset(where, options)
                given = cfg
                cfg = load_config(path, few_shot_options(given, per_class), read=lambda _: given)
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
                derived = any(not other.serves for job in runs.values() for other in job.depends_on)
                if of_dataset == dataset and name in chosen and not derived and makes_counterfactuals(cfg.model):
                    variants.setdefault(name_variant(cfg), name)
            for variant, name in variants.items():
                file = 'counterfactuals.png' if len(variants) == 1 else f'counterfactuals_{variant}.png'
                jobs.append(self._plan_picture(dataset, name, variant, self.out / dataset / file))
        return jobs

    def _plan_picture(self, dataset: str, name: str, variant: str, path: Path) -> Job:
        cfg = self.configs[dataset, name]
        # Of a tuned method, the file of the runs holds the chosen setting.
        tuned = (dataset, name) in self.tuned
        config = path.with_suffix('.py') if tuned else self.locate_config(dataset, name)
        return Job(
            label=f'{dataset} picture of {variant}'.strip(),
            product=path,
            key_file=path.with_suffix('.key'),
            key=fingerprint(cfg, None, False),
            commands=partial(draw_commands, cfg, config),
            group=(dataset, 'picture'),
            report=lambda: str(path),
        )


def find_rank(method: Method) -> int:
    """The order in which methods are planned: after those whose choice or runs they use."""
    return 2 if method.source else int(method.tuned_as not in (None, method.name))


def check_datasets(methods: list[Method], datasets: list[str]) -> None:
    """Raise a ConfigError for a method that names a data set that the study does not have."""
    for method in methods:
        for name in method.datasets or ():
            if name not in datasets:
                raise ConfigError(f'methods[{method.name!r}].datasets: {name!r} is none of {", ".join(datasets)}')


def drop_unused_options(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options of sections that the config sets to None: a zero-shot config trains nothing."""
    return {
        key: value for key, value in options.items() if '.' not in key or cfg.get(key.partition('.')[0], '') is not None
    }


def name_variant(cfg: Config) -> str:
    """Name the counterfactual images of a config by mask, fill and value, such as ``object_single``."""
    settings = {'mask': 'object', 'fill': 'single', 'value': None, **shown_settings(cfg.model)}
    value = [] if settings['value'] is None else [f'{settings["value"]:g}']
    value += [] if settings.get('mask_share') is None else [f'share{settings["mask_share"]:g}']
    changes = [change for change in ('views', 'color_mixing') if settings.get(change)]
    changes += [settings['donors']] if settings.get('donors', 'any') != 'any' else []
    preprocessor = cfg.model.get('data_preprocessor') or {}
    changes += ['oracle'] if preprocessor.get('oracle') else []
    changes += [slug(str(value)) for _, value in sorted((preprocessor.get('relevance') or {}).items())]
    return '_'.join([settings['mask'], settings['fill'], *value, *changes])
