"""A study: methods × seeds × data sets, each a training and a test, gathered in tables and figures.

What a study file says is in docs/studies.md.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.device import get_device
from rich.console import Console
from rich.measure import Measurement

from .. import __version__
from ..compat import SafeYAMLLoader, multiplies_bfloat16
from ..datasets.folder import follow_run
from ..engine.checkpoints import best_checkpoint
from ..engine.checks.model import SLOW_BFLOAT16, makes_counterfactuals
from ..engine.config import check_text_file, load_config, read_config
from ..errors import ConfigError, MissingFileError, StorageError, UserError, blame
from ..evaluation import describe_checkpoint
from ..files import check_file_name, locked, remove_leftovers, write_json, write_text
from ..reporting import id_ood_points, id_ood_scatter, results_table, save_figure, to_json, to_markdown
from ..reporting.runs import Run, find_problems, metric_of, read_run
from .jobs import Job, JobError, Step, run_jobs

TOOLS = Path(__file__).resolve().parents[1] / '.mim' / 'tools'
STUDY_KEYS = ('out', 'seeds', 'amp', 'keep', 'pictures', 'cfg_options', 'datasets', 'methods')
DATASET_KEYS = ('config', 'cfg_options')
STUDY_TYPES = dict(
    out=str, seeds=list, amp=bool, keep=str, pictures=bool, cfg_options=dict, datasets=dict, methods=dict
)
WORDS = {str: 'a text', list: 'a list, such as [0, 1, 2]', bool: 'true or false', dict: 'a mapping, name: value'}
METHOD_KEYS = (
    'config',
    'cfg_options',
    'seeds',
    'datasets',
    'sweep',
    'wise_ft',
    'alpha',
    'retest',
    'options',
    'soup',
    'greedy',
)
SOURCES = ('config', 'wise_ft', 'retest', 'soup')
OPTIONS = ('--knn-gate', '--relevance-crop')


@dataclass
class Method:
    """One method of a study, after sweeps.

    Attributes:
        name (str): As in tables.
        config (str, optional): Of a method that is trained, or tested as it comes.
        wise_ft (str, optional): Or: the method whose runs are interpolated with their start.
        retest (str, optional): Or: the method whose runs are tested again, with ``options``.
        soup (str, optional): Or: the method whose runs, over all seeds, are averaged.
        alpha (float): Where on the line, for ``wise_ft``.
        greedy (bool): For ``soup``.
        options (list): Of tools/test.py, for ``retest``.
        cfg_options (dict): Overrides of the config.
        seeds, datasets (list, optional): Those of the study, where None.
    """

    name: str
    config: str | None = None
    wise_ft: str | None = None
    retest: str | None = None
    soup: str | None = None
    alpha: float = 0.5
    greedy: bool = False
    options: list[str] = field(default_factory=list)
    cfg_options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] | None = None
    datasets: list[str] | None = None

    @property
    def source(self) -> str | None:
        """The method it is derived from."""
        return self.wise_ft or self.retest or self.soup


def expand_method(name: str, entry: str | Mapping[str, Any]) -> list[Method]:
    """The methods that an entry of ``methods`` stands for: one, or one for every combination of values in its
    ``sweep``.

    The name of each is ``name`` with ``{key}`` replaced by its value, where key is the last part of a swept key; values
    that the name does not mention are appended.

    Raises:
        ValueError: Unknown or contradicting keys.
    """
    where = f'methods[{name!r}]'
    if not isinstance(name, str):
        raise ConfigError(f'{where}: the name must be a text, in quotes if it looks like a number')
    if not isinstance(entry, (str, Mapping)):
        raise ConfigError(f'{where} must be a config or a mapping, but is {entry!r}')
    entry = dict(config=entry) if isinstance(entry, str) else dict(entry)
    check_keys(entry, METHOD_KEYS, where)
    for key, kind in (
        ('cfg_options', Mapping),
        ('sweep', Mapping),
        *((key, (list, tuple)) for key in ('seeds', 'datasets', 'options')),
    ):
        if entry.get(key) is not None and not isinstance(entry[key], kind):
            raise ConfigError(
                f'{where}: {key} must be {WORDS[dict if kind is Mapping else list]}, but is {entry[key]!r}'
            )
    if not isinstance(entry.get('greedy', False), bool):
        raise ConfigError(f'{where}: greedy must be {WORDS[bool]}, but is {entry["greedy"]!r}')
    sweep = entry.pop('sweep', None) or {}
    if not all(isinstance(values, (list, tuple)) and values for values in sweep.values()):
        raise ConfigError(f'{where}: sweep takes a list of values for every key')
    if math.prod(map(len, sweep.values())) > 1000:
        raise ConfigError(f'{where}: sweep stands for more than 1000 methods')
    if not all(isinstance(key, str) for part in (sweep, entry.get('cfg_options') or {}) for key in part):
        raise ConfigError(
            f'{where}: the keys of cfg_options and of sweep are names, such as optim_wrapper.optimizer.lr'
        )
    methods = []
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values))
        fields = {**entry, **{key: value for key, value in chosen.items() if '.' not in key}}
        check_keys(fields, METHOD_KEYS, f'{where}: sweep')
        options = {**(entry.get('cfg_options') or {}), **{key: value for key, value in chosen.items() if '.' in key}}
        short = {key.rpartition('.')[2]: value for key, value in chosen.items()}
        full = re.sub(r'\{(\w+)\}', lambda match, short=short: str(short.get(match[1], match[0])), name)
        appended = [f'{key}={value}' for key, value in short.items() if f'{{{key}}}' not in name]
        method = Method(
            ' '.join([full, *appended]),
            **{**fields, 'cfg_options': options, 'options': list(fields.get('options') or ())},
        )
        for key in SOURCES:
            if not isinstance(getattr(method, key), (str, type(None))):
                raise ConfigError(f'{where}: {key} must be {WORDS[str]}, but is {getattr(method, key)!r}')
        check_seeds(method.seeds, where)
        if isinstance(method.alpha, bool) or not isinstance(method.alpha, (int, float)) or not 0 <= method.alpha <= 1:
            raise ConfigError(
                f'{where}: alpha must lie between 0 (pre-trained) and 1 (fine-tuned), but is {method.alpha!r}'
            )
        given = [source for source in SOURCES if getattr(method, source) is not None]
        if len(given) != 1:
            raise ConfigError(f'{where} must have one of {", ".join(SOURCES)}, but has {" and ".join(given) or "none"}')
        if bool(method.retest) != bool(method.options) or not all(option in OPTIONS for option in method.options):
            raise ConfigError(
                f'{where}: retest needs options, a list of {" and ".join(OPTIONS)}, and nothing else can have them, '
                f'but they are {method.options!r}'
            )
        if method.source and method.cfg_options:
            raise ConfigError(
                f'{where} is derived from {method.source!r}, whose cfg_options count: it can have none of its own'
            )
        methods.append(method)
    return methods


def check_seeds(seeds: Sequence[Any] | None, where: str) -> None:
    """Raise a ConfigError unless all are different whole numbers."""
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds or ()):
        raise ConfigError(f'{where}: seeds must be whole numbers from 0 on, but are {seeds!r}')
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
        raise ConfigError(f'{where}: seeds must be one or several different numbers, but are {seeds!r}')


def check_number(value: Any, where: str) -> None:
    """Raise a ValueError for a text that looks like a number: YAML 1.1 reads 1e-4 and 1.5e3 as texts, 1.0e-4 and 1.5e+3
    as numbers."""
    if isinstance(value, str) and re.fullmatch(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+', value):
        mantissa, _, exponent = value.lower().partition('e')
        mantissa = mantissa if '.' in mantissa else f'{mantissa}.0'
        exponent = exponent if exponent[0] in '+-' else f'+{exponent}'
        raise ConfigError(
            f'{where} is the text {value!r}, not a number, by the rules of YAML: write {mantissa}e{exponent}'
        )


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise a ValueError that names an unknown key."""
    unknown = [key for key in mapping if key not in known]
    if unknown:
        raise ConfigError(f'{where} has no {unknown[0]!r}: it can have {", ".join(known)}')


def check_twice(node: yaml.Node | None) -> None:
    """Raise a ValueError for a key that stands twice in a mapping: YAML would keep the last one without a word."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    lines: dict[str, int] = {}
    for key, value in pairs:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigError(f'{key.value!r} stands twice in it, at lines {lines[key.value]} and {line}')
        lines[key.value] = line
        check_twice(value)


def load_study(path: str) -> dict[str, Any]:
    """Read a study file (YAML, JSON, or Python as a config), whose output goes to ``work_dirs/<its name>`` if it says
    nothing else.

    Raises:
        MissingFileError, ConfigError: With the file's name.
    """
    check_text_file(path, 'study')
    study = read_config(path).to_dict()
    if Path(path).suffix in ('.yaml', '.yml'):
        with blame(path):
            check_twice(yaml.compose(Path(path).read_text(encoding='utf-8'), Loader=SafeYAMLLoader))
    check_keys(study, STUDY_KEYS, path)
    study = {key: value for key, value in study.items() if value is not None}
    for key, kind in STUDY_TYPES.items():
        if key in study and (not isinstance(study[key], kind) or study[key] == ''):
            raise ConfigError(f'{path}: {key} must be {WORDS[kind]}, but is {study[key]!r}')
    if not study.get('methods'):
        raise ConfigError(f'{path} has no methods')
    check_seeds(study.get('seeds'), path)
    return {'out': str(Path('work_dirs') / Path(path).stem), **study}


class Study:
    """The jobs of a study, and what comes of them.

    Args:
        methods (dict): Name to entry, see :func:`expand_method`.
        out (str): Folder of everything. A run is in ``<out>/<data set>/<method>/seed<N>``.
        datasets (dict, optional): Name to ``dict(config='…{config}…', cfg_options={…})``: where a method's config is
            found, and overrides. None: one nameless data set, and methods name whole paths.
        seeds (list[int]): Of methods that say nothing else.
        cfg_options (dict, optional): Overrides of every config; those of the data set, then those of the method count
            more.
        overrides (dict, optional): Overrides of every config that count most.
        amp (bool): bfloat16 autocast.
        keep (str): 'best': of a finished run only the checkpoint that was tested is kept. 'all': the last epochs too.
        pictures (bool): Whether counterfactual images of every variant are drawn.
        only (list[str], optional): Patterns of names; other methods are not run, unless one of these is derived from
            them. What is finished of them stays in the results.

    Raises:
        ValueError, FileNotFoundError: What is wrong with an entry or a config, before anything runs.
    """

    def __init__(
        self,
        methods: Mapping[str, Any],
        out: str,
        datasets: Mapping[str, Any] | None = None,
        seeds: Sequence[int] = (0,),
        cfg_options: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        amp: bool = False,
        keep: str = 'best',
        pictures: bool = True,
        only: Sequence[str] | None = None,
    ) -> None:
        if keep not in ('best', 'all'):
            raise ConfigError(f"keep={keep!r}: choose 'best' or 'all'")
        self.out = Path(out)
        self.seeds = list(seeds)
        self.cfg_options = dict(cfg_options or {})
        self.overrides = dict(overrides or {})
        self.amp = amp
        self.keep = keep
        self.pictures = pictures
        for name, entry in (datasets or {}).items():
            check_file_name(name, 'datasets')
            if not isinstance(entry, (str, Mapping)):
                raise ConfigError(f'datasets[{name!r}] must be a name and a config or a mapping, but is {entry!r}')
        self.datasets = {
            name: dict(config=entry) if isinstance(entry, str) else dict(entry)
            for name, entry in (datasets or {'': '{config}'}).items()
        }
        for name, entry in self.datasets.items():
            check_keys(entry, DATASET_KEYS, f'datasets[{name!r}]')
            if 'config' not in entry:
                raise ConfigError(f'datasets[{name!r}] needs config, a path with {{config}} in it')
            for key, kind in dict(config=str, cfg_options=Mapping).items():
                if not isinstance(entry.get(key, kind()) if kind is str else entry.get(key) or {}, kind):
                    raise ConfigError(
                        f'datasets[{name!r}]: {key} must be {WORDS[str if kind is str else dict]}, but is '
                        f'{entry[key]!r}'
                    )
        self.methods = [method for name, entry in methods.items() for method in expand_method(name, entry)]
        for method in self.methods:
            check_file_name(slug(method.name), f'methods[{method.name!r}]')
        check_methods(self.methods, list(self.datasets))
        self.chosen = {method.name for method in (select_methods(self.methods, only) if only else self.methods)}
        self.configs: dict[tuple[str, str], Config] = {}
        self.runs: dict[tuple[str, str], dict[int | None, Job]] = {}
        pairs = [
            (dataset, method)
            for dataset in self.datasets
            for method in self.methods
            if method.datasets is None or dataset in method.datasets
        ]
        for dataset, method in sorted(
            pairs, key=lambda pair: pair[1].source is not None
        ):  # what others are derived from first
            self._plan(dataset, method)
        self.runs = {
            (dataset, method.name): self.runs[dataset, method.name]
            for dataset, method in pairs
            if (dataset, method.name) in self.runs
        }
        folders = [job.product.parent for runs in self.runs.values() for job in runs.values()]
        if len(set(folders)) < len(folders):
            twice = next(folder for folder in folders if folders.count(folder) > 1)
            raise ConfigError(f'two methods would write to {twice}: give them names that differ in letters or digits')

    @property
    def jobs(self) -> list[Job]:
        """Everything to be run: per data set and method, then the pictures."""
        runs = [job for (_, name), of_method in self.runs.items() if name in self.chosen for job in of_method.values()]
        return runs + (self._pictures() if self.pictures else [])

    # plan
    # ------------------------------------------------------------------------------------------------------------------

    def _plan(self, dataset: str, method: Method) -> None:
        """Make the jobs of a method on a data set: one per seed, or one where no seed has a part in it."""
        folder = self.out / dataset / slug(method.name)
        seeds: list[int | None] = list(self.seeds if method.seeds is None else method.seeds)
        if method.source:
            if (dataset, method.source) not in self.runs:
                return
            cfg, parents = self.configs[dataset, method.source], self.runs[dataset, method.source]
            if None in parents and not method.retest:
                raise ConfigError(
                    f'methods[{method.name!r}]: {method.source!r} is not trained, so nothing can be derived from it'
                )
            seeds = list(parents) if method.seeds is None or None in parents else list(method.seeds)
            lacking = [seed for seed in seeds if seed not in parents]
            if lacking:
                raise ConfigError(
                    f'methods[{method.name!r}]: {method.source!r} has no run with seed {lacking[0]}, but with '
                    f'{", ".join(map(str, parents))}'
                )
            needs = {seed: [parents[seed]] for seed in seeds}
            if method.soup:
                needs = {None: [need for of_seed in needs.values() for need in of_seed]}
            if method.greedy and len(seeds) > 1 and follow_run(copy.deepcopy(cfg.get('val_dataloader') or {}), 0):
                raise ConfigError(
                    f'methods[{method.name!r}]: each seed of {method.source!r} has held-out images of its own '
                    "(holdout.seed='run'), which the others have trained on: a greedy soup needs one hold-out"
                )
        else:
            cfg = self._config(dataset, method)
            needs = {seed: [] for seed in (seeds if cfg.get('train_cfg') else [None])}
        self.configs[dataset, method.name] = cfg
        config = self.out / dataset / slug(method.source or method.name) / 'config.py'
        kind = 'derived' if method.source else 'trained' if cfg.get('train_cfg') else 'tested'
        derivation = [method.wise_ft, method.alpha, method.soup, method.greedy, method.retest, *method.options]
        self.runs[dataset, method.name] = {
            seed: Job(
                label=' '.join(filter(None, [dataset, method.name, '' if seed is None else f'(seed {seed})'])),
                product=folder / ('start' if seed is None else f'seed{seed}') / 'metrics.json',
                key_file=folder / ('start' if seed is None else f'seed{seed}') / 'key',
                key=fingerprint(cfg, seed, self.amp, derivation, [need.key for need in of_seed]),
                steps=partial(self._steps, method, cfg, config, seed),
                leftovers=('*.pth', 'last_checkpoint', 'trained'),
                needs=of_seed,
                kind=(dataset, kind, method.name),
                report=partial(self._report, dataset, method.name, seed),
            )
            for seed, of_seed in needs.items()
        }

    def _config(self, dataset: str, method: Method) -> Config:
        entry = self.datasets[dataset]
        path = entry['config'].replace('{config}', method.config)
        if not Path(path).is_file():
            raise MissingFileError(f'methods[{method.name!r}]: there is no config {path!r}')
        options = {**self.cfg_options, **(entry.get('cfg_options') or {}), **method.cfg_options, **self.overrides}
        for key, value in options.items():
            check_number(value, f'methods[{method.name!r}]: {key}')
        try:
            cfg = load_config(path, applicable(path, options))
        except UserError as error:
            raise ConfigError(f'methods[{method.name!r}]: {path} with {options}: {error}') from error
        if 'id_set' not in (cfg.get('test_cfg') or {}):
            raise ConfigError(f'methods[{method.name!r}]: {path} has no test_cfg.id_set, so no in-distribution set')
        return cfg

    # run
    # -------------------------------------------------------------------------------------------------------------------

    def _steps(self, method: Method, cfg: Config, config: Path, seed: int | None, job: Job) -> Iterator[Step]:
        folder = job.product.parent
        write_config(cfg, config)
        shared = ['--work-dir', str(folder), *(['--amp'] if self.amp else [])]

        found = folder / 'test.json'  # becomes the product once it is whole

        def test(*arguments: str | Path, share: float) -> Step:
            return Step(
                'testing on', tool('test.py', config, *arguments, '--out', found, *shared), folder / 'test.log', share
            )

        if method.wise_ft:
            alpha, line = f'{method.alpha:g}', folder / 'wise_ft'
            (line / 'metrics.json').unlink(missing_ok=True)  # of another α, from a run that was killed
            yield Step(
                'interpolating',
                tool(
                    'wise_ft.py',
                    config,
                    checkpoint_to_test(job.needs[0].product.parent),
                    '--alphas',
                    alpha,
                    '--save',
                    alpha,
                    '--out',
                    line,
                    *shared,
                ),
                folder / 'wise_ft.log',
                0.8,
            )
            if (line / 'metrics.json').is_file():  # at the default α
                (line / 'metrics.json').replace(found)
            else:
                yield test(line / f'wise_ft_{alpha}.pth', share=0.2)
        elif method.retest:
            tested = [] if seed is None else [checkpoint_to_test(job.needs[0].product.parent)]
            yield test(*tested, *method.options, share=1.0)
        elif method.soup:
            soup, ingredients = folder / 'soup.pth', [checkpoint_to_test(need.product.parent) for need in job.needs]
            yield Step(
                'averaging',
                tool('soup.py', config, *ingredients, '--out', soup, *(['--greedy'] if method.greedy else [])),
                folder / 'soup.log',
                0.4,
            )
            yield test(soup, share=0.6)
        elif seed is None:
            yield test(share=1.0)
        else:
            trained = folder / 'trained'  # there once the training is finished
            if not trained.is_file():
                yield Step(
                    'fine-tuning',
                    tool('train.py', config, '--seed', seed, '--resume', *shared),
                    folder / 'train.log',
                    0.85,
                    cfg.train_cfg.max_epochs,
                )
                write_text(trained, '')
            yield test(checkpoint_to_test(folder), share=0.15)
            if self.keep == 'best' and best_checkpoint(folder):
                tested = checkpoint_to_test(folder)  # a killed training may have left an earlier best one too
                for old in [*(path for path in folder.glob('*.pth') if path != tested), folder / 'last_checkpoint']:
                    old.unlink(missing_ok=True)
        sign_metrics(found, job.product, method.name, seed)

    def _report(self, dataset: str, name: str, seed: int | None) -> str:
        run, id_set = read_run(self.runs[dataset, name][seed].product), self.id_set(dataset)
        found = metric_of({name: [run]}, 'top1')[name][0]
        shifts = [value for set_name, value in found.items() if set_name != id_set]
        parts = [f'{id_set} {found[id_set]:.1f}'] if id_set in found else []
        return ', '.join(parts + ([f'OOD average {sum(shifts) / len(shifts):.1f}'] if shifts else []))

    def _pictures(self) -> list[Job]:
        """Counterfactual images of every mask, fill and value, by the first method that has them."""
        jobs = []
        for dataset in self.datasets:
            variants: dict[str, str] = {}
            for of_dataset, name in self.runs:
                model = self.configs[of_dataset, name].model
                if (
                    of_dataset == dataset
                    and name in self.chosen
                    and not self.method(name).source
                    and makes_counterfactuals(model)
                ):
                    settings = {
                        'mask': 'object',
                        'fill': 'single',
                        'value': None,
                        **(model.get('data_preprocessor') or {}),
                    }
                    parts = [settings['mask'], settings['fill']] + (
                        [f'{settings["value"]:g}'] if settings['value'] is not None else []
                    )
                    parts += [change for change in ('views', 'colors') if settings.get(change)]
                    variants.setdefault('_'.join(parts), name)
            for variant, name in variants.items():
                picture = (
                    self.out
                    / dataset
                    / ('counterfactuals.png' if len(variants) == 1 else f'counterfactuals_{variant}.png')
                )
                cfg = self.configs[dataset, name]
                jobs.append(
                    Job(
                        label=f'{dataset} picture of {variant}'.strip(),
                        product=picture,
                        key_file=picture.with_suffix('.key'),
                        key=fingerprint(cfg, None, False),
                        steps=partial(self._picture_steps, cfg, self.out / dataset / slug(name) / 'config.py'),
                        kind=(dataset, 'picture'),
                        report=lambda picture=picture: str(picture),
                    )
                )
        return jobs

    @staticmethod
    def _picture_steps(cfg: Config, config: Path, job: Job) -> Iterator[Step]:
        write_config(cfg, config)
        yield Step(
            'drawing',
            tool('show_counterfactuals.py', config, '--split', 'train', '--num', 8, '--out', job.product),
            job.product.with_suffix('.log'),
        )

    # results
    # ---------------------------------------------------------------------------------------------------------------

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def id_set(self, dataset: str) -> str:
        return next(cfg.test_cfg.id_set for (of_dataset, _), cfg in self.configs.items() if of_dataset == dataset)

    def finished(self, dataset: str) -> dict[str, list[Run]]:
        """{method: its finished runs}."""
        found = {
            name: [read_run(job.product) for job in runs.values() if job.is_finished()]
            for (of_dataset, name), runs in self.runs.items()
            if of_dataset == dataset
        }
        return {name: runs for name, runs in found.items() if runs}

    def run(self, console: Console, jobs: int = 1) -> dict[str, str]:
        """Run what is not finished, ``jobs`` at once; then :meth:`gather`. Returns the failures, label to reason."""
        with locked(self.out, 'a study'):
            for folder in {
                *(self.out / dataset for dataset in self.datasets),
                *(job.product.parent for job in self.jobs),
            }:
                remove_leftovers(folder)
            failed = run_jobs(self.jobs, console, jobs)
            self.gather(console)
        if failed:
            console.print(f'\n{len(failed)} failed:', style='bold red', highlight=False)
            for label, reason in failed.items():
                console.print(f'  {label}: {reason}', highlight=False, markup=False, soft_wrap=True)
            console.print('The same command tries them again.', highlight=False)
        return failed

    def gather(self, console: Console) -> None:
        """Print a table for every data set; write it as results.md and results.json, and the scatter as id_ood.png."""
        for dataset in self.datasets:
            finished = self.finished(dataset)
            if not finished:
                continue
            try:
                results = metric_of(finished, 'top1')
            except ValueError as error:  # a set was added between two runs
                console.print(
                    f'{dataset}: no table: {error}'.removeprefix(': '), style='bold red', highlight=False, markup=False
                )
                console.print(
                    'Delete the metrics.json without it, and the same command tests that run again.', highlight=False
                )
                continue
            marks = {name: find_problems(runs) for name, runs in finished.items()}
            folder, id_set = self.out / dataset, self.id_set(dataset)
            tested = {name for runs in results.values() for name in runs[0]}
            named = [
                name
                for (of_dataset, _), cfg in self.configs.items()
                if of_dataset == dataset
                for name in cfg.test_dataloader
            ]
            shifts = [name for name in dict.fromkeys([*named, *sorted(tested)]) if name in tested and name != id_set]
            table = results_table(results, id_set, shifts, title=dataset or None, marks=marks)
            needed = Measurement.get(console, console.options.update(width=1000), table).minimum
            console.print(
                table, width=max(console.width, needed), crop=False
            )  # a narrow terminal wraps lines, and loses no column
            written = {'table': [folder / 'results.md', folder / 'results.json']}
            write_text(folder / 'results.md', to_markdown(results, id_set, shifts, marks=marks))
            write_text(folder / 'results.json', to_json(results, id_set, shifts))
            if points := id_ood_points(results, id_set, shifts):
                written['scatter'] = [folder / 'id_ood.png']
                save_figure(
                    id_ood_scatter(points, size=(3.4, 2.9) if len(points) <= 8 else (7, 5.6)), folder / 'id_ood.png'
                )
            pictures = sorted(folder.glob('counterfactuals*.png'))
            if self.pictures and pictures:
                written['counterfactuals'] = pictures
            for what, paths in written.items():
                console.print(f'{what + ":":17}{"  ".join(map(str, paths))}', highlight=False, soft_wrap=True)


def run_or_exit(study: Study, console: Console, jobs: int = 1) -> None:
    """:meth:`Study.run` for a command line: SystemExit where a job failed, or the user stopped it."""
    if study.amp and not multiplies_bfloat16(get_device()):
        console.print(f'--amp: {SLOW_BFLOAT16}', style='yellow')
    try:
        failed = study.run(console, jobs)
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on') from None
    except StorageError as error:
        raise SystemExit(str(error)) from None
    if failed:
        raise SystemExit(1)


def check_methods(methods: Sequence[Method], datasets: Sequence[str]) -> None:
    """Raise a ValueError for two methods of one name, one derived from nothing or from a derived one, and unknown data
    sets."""
    by_name = {method.name: method for method in methods}
    for method in methods:
        where = f'methods[{method.name!r}]'
        if by_name[method.name] is not method:
            raise ConfigError(f'two methods are named {method.name!r}')
        if method.source and method.source not in by_name:
            raise ConfigError(f'{where} is derived from {method.source!r}, which is none of {", ".join(by_name)}')
        if method.source and by_name[method.source].source:
            raise ConfigError(f'{where} is derived from {method.source!r}, which is derived itself')
        unknown = [name for name in method.datasets or () if name not in datasets]
        if unknown:
            raise ConfigError(f'{where}.datasets: {unknown[0]!r} is none of {", ".join(datasets)}')


def select_methods(methods: Sequence[Method], only: Sequence[str]) -> list[Method]:
    """Those whose name matches a pattern (``FT``, ``CFMask*``), and those they are derived from.

    Raises:
        ValueError: A pattern that matches none.
    """
    names = {method.name for method in methods}
    for pattern in only:
        if not any(fnmatch(name, pattern) for name in names):
            raise ConfigError(
                f'no method is named {pattern!r}: there are {", ".join(method.name for method in methods)}'
            )
    chosen = {method.name for method in methods if any(fnmatch(method.name, pattern) for pattern in only)}
    chosen |= {method.source for method in methods if method.name in chosen and method.source}
    return [method for method in methods if method.name in chosen]


def slug(name: str) -> str:
    """A method's name as a folder's: ``'CFMask object/single'`` gives ``'cfmask_object_single'``."""
    return re.sub(r'[^\w.=+-]+', '_', name.lower()).strip('_')


def tool(name: str, *args: Any) -> list[str]:
    return [str(TOOLS / name), *map(str, args)]


def applicable(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those for sections that the config sets to None: a zero-shot config has no training to
    change."""
    cfg = read_config(path)
    return {
        key: value for key, value in options.items() if '.' not in key or cfg.get(key.partition('.')[0], '') is not None
    }


def fingerprint(
    cfg: Config, seed: int | None, amp: bool, derivation: Sequence[Any] = (), sources: Sequence[str] = ()
) -> str:
    """What determines a result: it is kept as long as this stays the same."""
    files = [content_hash(path, path.stat().st_mtime_ns) for path in list_files([cfg.model, cfg.get('load_from')])]
    text = json.dumps(
        [cfg.to_dict(), files, seed, amp, list(derivation), list(sources), __version__], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def list_files(part: Any) -> Iterator[Path]:
    """Files that a part of a config names: weights, teachers, embeddings, class names."""
    if isinstance(part, str):
        path = Path(part).expanduser()
        if len(part) < 4096 and path.is_file():
            yield path
    elif isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            yield from list_files(value)


@cache
def content_hash(path: Path, modified: int) -> str:
    """SHA-256 of a file, read once as long as ``modified`` stays the same."""
    return describe_checkpoint(str(path))['sha256']


def write_config(cfg: Config, path: Path) -> None:
    """Write a config whole: another job may be reading the same file."""
    write_text(path, cfg.pretty_text)


def checkpoint_to_test(folder: Path) -> Path:
    """The checkpoint of a training that is tested: the best on the held-out images, or the last where none was chosen.

    Raises:
        JobError: There is none.
    """
    found = best_checkpoint(folder) or max(
        folder.glob('epoch_*.pth'), key=lambda path: path.stat().st_mtime, default=None
    )
    if found is None:
        raise JobError(f'there is no checkpoint in {folder}')
    return found


def sign_metrics(found: Path, path: Path, method: str, seed: int | None) -> None:
    """Move what a test wrote to its place, with the names of the method and the seed in it."""
    write_json(
        found,
        {**json.loads(found.read_text(encoding='utf-8', errors='surrogateescape')), 'method': method, 'seed': seed},
    )
    found.replace(path)
