"""Tuning: a training for every setting of a grid, of which the validation images choose one.

The trials of a method on one data set are jobs. The runs of the method depend on them, and learn the chosen setting
when they start.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.checks.validation import check_validation
from ..errors import ConfigError, blame
from ..evaluation import preference
from ..files import check_file_name, slug
from ..reporting.choices import shorten_keys
from .jobs import Job, JobError
from .spec import TuneSpec

FOLDER = 'tune'  # of the trials, in the folder of a data set
FILE_NAME = 'trial.json'
MOST = 100  # settings of one grid
LOWER_IS_BETTER = ('/nll', '/ece', '/mce')

Setting = dict[str, Any]  # config keys and their values


@dataclass
class Tuning:
    """The trials of a method on a data set.

    Attributes:
        method (str): Whose they are.
        grid (dict): Config keys to the values that are tried.
        settings (list[dict]): Every combination of them.
        trials (list[Job]): A job for every setting; its product is a trial.json.
        spec (TuneSpec): How they are made and compared.
    """

    method: str
    grid: Mapping[str, Sequence[Any]]
    settings: list[Setting]
    trials: list[Job]
    spec: TuneSpec

    def repeats(self, seed: int | None) -> bool:
        """Whether a trial is the same training as the method's run with this seed and the trial's setting."""
        return seed == self.spec.seed and not self.spec.cfg_options

    @property
    def basis(self) -> str:
        """Identifies the trials, as the end of a key."""
        return ' ' + hashlib.sha256(' '.join(job.key for job in self.trials).encode()).hexdigest()[:16]

    def read_trials(self) -> list[dict] | None:
        """The results of all trials; None as long as some are not finished."""
        if not all(job.is_finished() for job in self.trials):
            return None
        return [json.loads(job.product.read_text(encoding='utf-8')) for job in self.trials]

    def find_best(self) -> int | None:
        """The number of the best setting, the first of equal ones; None as long as trials are not finished.

        Raises:
            JobError: No setting could be trained.
        """
        trials = self.read_trials()
        if trials is None:
            return None
        ranks = {i: self._rank(trial) for i, trial in enumerate(trials) if trial['metrics']}
        if not ranks:
            raise JobError(f'{self.method} cannot be tuned: the loss became infinite with every setting of its grid')
        return max(ranks, key=ranks.__getitem__)

    def _rank(self, trial: Mapping[str, Any]) -> tuple[float, float]:
        """The larger, the better; see :func:`mmcfmask.evaluation.preference`."""
        key = self.spec.metric or trial['metric']
        if key not in trial['metrics']:
            raise JobError(f'tune.metric: the validation has no {key!r}, but {", ".join(trial["metrics"])}')
        rule = trial['rule'] if key == trial['metric'] else 'less' if key.endswith(LOWER_IS_BETTER) else 'greater'
        return preference(trial['metrics'], key, rule)

    def describe(self) -> dict[str, Any]:
        """What a metrics.json says of the tuning: the choice, what it was made from, and how.

        ``at_edge`` lists the keys whose chosen number is the smallest or largest of several in the grid.
        """
        trials, best = self.read_trials(), self.find_best()
        if trials is None or best is None:
            raise JobError(f'the trials of {self.method} are not finished')
        chosen = self.settings[best]
        return dict(
            method=self.method,
            chosen=chosen,
            grid={key: list(values) for key, values in self.grid.items()},
            at_edge=[key for key, values in self.grid.items() if is_at_edge(chosen[key], values)],
            metric=self.spec.metric or trials[best]['metric'],
            seed=self.spec.seed,
            cfg_options=dict(self.spec.cfg_options),
            trials=[
                dict(setting=setting, metrics=trial['metrics'], diverged=trial['diverged'])
                for setting, trial in zip(self.settings, trials)
            ],
        )


@dataclass
class TunedConfig:
    """The config of a method that takes the choice of a tuning, its own or another method's.

    Attributes:
        tuning (Tuning): The tuning.
        configs (list[Config]): The config of the method with every setting.
    """

    tuning: Tuning
    configs: list[Config]

    def choose(self) -> str | None:
        """The chosen setting as the end of a key; None as long as there is none."""
        try:
            best = self.tuning.find_best()
        except JobError:
            return None
        return None if best is None else ' ' + json.dumps(self.tuning.settings[best], sort_keys=True, default=str)

    def read_config(self) -> Config:
        """The config with the chosen setting.

        Raises:
            JobError: There is none.
        """
        best = self.tuning.find_best()
        if best is None:
            raise JobError(f'the trials of {self.tuning.method} are not finished')
        return self.configs[best]


def list_settings(grid: Mapping[str, Sequence[Any]], where: str) -> dict[str, Setting]:
    """Every combination of the values of a grid, by a name for its folder, such as ``lr=1e-05``.

    Raises:
        ConfigError: There are more than 100, or two would have the same folder.
    """
    if math.prod(map(len, grid.values())) > MOST:
        raise ConfigError(f'{where} has more than {MOST} combinations')
    labels = shorten_keys(list(grid))
    found: dict[str, Setting] = {}
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values))
        name = slug(' '.join(f'{labels[key]}={value}' for key, value in setting.items()))
        check_file_name(name, where)
        if name in found:
            raise ConfigError(f'{where}: the trials of two values would share the folder {name!r}')
        found[name] = setting
    return found


def is_at_edge(chosen: Any, values: Sequence[Any]) -> bool:
    """Whether a number is the smallest or the largest of several numbers."""
    numbers = [value for value in values if isinstance(value, Real) and not isinstance(value, bool)]
    return len(numbers) == len(values) > 1 and chosen in (min(numbers), max(numbers))


def check_keys(where: str, grid: Mapping[str, Any], options: Mapping[str, Any], source: str) -> None:
    """Raise a ConfigError if options set a key of a grid, or a part of it, so that the trials would be alike."""
    for key in grid:
        for other in options:
            if f'{key}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{key}.'):
                raise ConfigError(
                    f'{where}: {key} is tuned, but {source} sets {other}: leave it out, or write grid: {{}} to not '
                    'tune this method'
                )


def check_can_be_tuned(where: str, cfg: Config, metric: str | None) -> None:
    """Raise a ConfigError unless the trainings of a config are validated by one metric, and by ``metric`` too."""
    save_best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    if not cfg.get('val_dataloader') or not isinstance(save_best, str):
        raise ConfigError(
            f'{where} cannot be tuned: its config needs validation images (val_dataloader) and one metric in '
            f'default_hooks.checkpoint.save_best, which is {save_best!r}. grid: {{}} leaves it as it is'
        )
    if metric:
        chosen = copy.deepcopy(cfg)
        chosen.default_hooks.checkpoint.save_best = metric  # the same rules: a metric of the validation, of no shift
        with blame(f'{where}: tune.metric'):
            check_validation(chosen)


def name_trial(folder: Path, method: str, setting: str) -> Path:
    """The trial.json of a setting, in the folder of a data set."""
    return folder / FOLDER / slug(method) / setting / FILE_NAME
