"""The schema of a study file, and how one is read. ``docs/studies.md`` explains the keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from ..engine.config import check_text_file, find_file, read_config
from ..errors import ConfigError, blame
from ..files import check_file_name
from ..ranges import Count, Seed, Share
from ..safe_yaml import SafeYAMLLoader
from .spec_errors import describe_error

# Names of version 0.1.0.
RENAMED_KEYS = {'retest': 'evaluate'}
RENAMED_OPTIONS = {'--gate': '--knn-gate', '--second-look': '--relevance-crop'}


def check_distinct(numbers: list[int]) -> list[int]:
    """Return ``numbers`` unless one is given twice."""
    if len(set(numbers)) < len(numbers):
        raise PydanticCustomError('distinct', 'must be different numbers')
    return numbers


def check_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Return ``options`` unless a value is a string that looks like a number.

    YAML 1.1 reads ``1e-4`` and ``1.5e3`` as strings, ``1.0e-4`` and ``1.5e+3`` as numbers.
    """
    for key, value in options.items():
        if isinstance(value, str) and re.fullmatch(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+', value):
            mantissa, _, exponent = value.lower().partition('e')
            mantissa = mantissa if '.' in mantissa else f'{mantissa}.0'
            exponent = exponent if exponent[0] in '+-' else f'+{exponent}'
            raise ConfigError(f'{key} is the string {value!r}, not a number: in YAML, write {mantissa}e{exponent}')
    return options


def check_grid(grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return ``grid`` unless a value is given twice, is not a number although it looks like one, or is not finite."""
    for key, values in grid.items():
        for i, value in enumerate(values):
            check_numbers({key: value})
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f'{key} has the value {value}, which is not a finite number')
            if value in values[:i]:
                raise ConfigError(f'{key} has the value {value!r} twice')
    return grid


def check_folder_names(datasets: dict[str, Any]) -> dict[str, Any]:
    """Return ``datasets`` unless a name cannot be the name of a folder."""
    for name in datasets:
        check_file_name(name, 'datasets')
    return datasets


class ShortForm:
    """Annotation of a model: a string stands for the mapping ``{config: string}``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {'anyOf': [{'type': 'string', 'description': 'Path of a config.'}, handler(schema)]}

    @staticmethod
    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {'config': value}
        if not isinstance(value, (Mapping, BaseModel)):
            raise PydanticCustomError('entry', 'must be a config or a mapping of names to values')
        return value


Text = Annotated[str, Strict(), StringConstraints(min_length=1)]
Seeds = Annotated[list[Annotated[Seed, Strict()]], Field(min_length=1), AfterValidator(check_distinct)]
Counts = Annotated[list[Annotated[Count, Strict()]], AfterValidator(check_distinct)]
CfgOptions = Annotated[dict[Text, Any], AfterValidator(check_numbers)]
Values = dict[Text, Annotated[list[Any], Field(min_length=1)]]
Grid = Annotated[Values, AfterValidator(check_grid)]
Option = Literal['--knn-gate', '--vrf', '--relevance-crop']


class Section(BaseModel):
    """A mapping in a study file: an unknown key is an error, and an empty value (null) means the default."""

    model_config = ConfigDict(extra='forbid')

    @model_validator(mode='before')
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        sweep = values.get('sweep')
        for key in [*values, *(sweep if isinstance(sweep, Mapping) else ())]:
            if key in RENAMED_KEYS:
                raise ConfigError(f'{key} is now {RENAMED_KEYS[key]}')
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}


class DatasetSpec(Section):
    """A data set: where the configs of methods are found for it."""

    config: Text = Field(description='Path of a config; {config} in it stands for the config of the method.')
    cfg_options: CfgOptions = Field({}, description='Config values for every method on this data set.')


class TuneSpec(Section):
    """How trained methods are tuned: a training per setting, compared by the validation images."""

    grid: Grid = Field(
        {}, description='Config keys and their values to try, in every combination, for methods without a grid.'
    )
    metric: Text | None = Field(
        None, description='Validation metric that compares the trials (default: the one that chooses checkpoints).'
    )
    seed: Annotated[Seed, Strict()] = Field(0, description='Training seed of every trial.')
    cfg_options: CfgOptions = Field({}, description='Config values of every trial: its budget.')


class MethodFields(Section):
    """What a method may say, swept or not."""

    config: Text | None = Field(None, description='Config of a method to train, or only to test.')
    wise_ft: Text | None = Field(
        None, description='The method whose weights are interpolated with the pretrained weights.'
    )
    evaluate: Text | None = Field(None, description='The method to test again, with `options`.')
    soup: Text | None = Field(None, description='The method whose weights are averaged over its seeds.')
    alpha: Annotated[Share, Strict()] = Field(
        0.5, allow_inf_nan=False, description='Of wise_ft: 0 is pretrained, 1 is fine-tuned.'
    )
    greedy: StrictBool = Field(False, description='Of soup: add a model only if the held-out accuracy does not drop.')
    stock: StrictBool = Field(False, description='Of soup: Model Stock, an average with the pretrained weights.')
    options: list[Option] = Field([], description='Of evaluate: options of tools/test.py.')
    cfg_options: CfgOptions = Field({}, description='Config values of this method.')
    seeds: Seeds | None = Field(None, description='Seeds of this method.')
    datasets: list[Text] | None = Field(None, description='Data sets of this method (default: all).')
    grid: Grid | None = Field(
        None, description='What is tuned, instead of the grid of `tune`. {}: this method is not tuned.'
    )
    tuned_as: Text | None = Field(
        None, description='The method whose choice this one takes; the method itself may be named.'
    )

    @model_validator(mode='before')
    @classmethod
    def _name_new_options(cls, values: Any) -> Any:
        options = values.get('options') if isinstance(values, Mapping) else None
        for option in options if isinstance(options, (list, tuple)) else ():
            if isinstance(option, str) and option in RENAMED_OPTIONS:
                raise ConfigError(f'{option} is now {RENAMED_OPTIONS[option]}')
        return values


class MethodSpec(MethodFields):
    """An entry of methods: one method, or one for every combination of the values of ``sweep``."""

    sweep: Values = Field(
        {}, description='Config keys, or keys of this entry, and the values to try: one method for every combination.'
    )


class StudySpec(Section):
    """A study: methods x seeds x data sets."""

    out: Text = Field('work_dirs/study', description='Folder of all results (default: work_dirs/<name of the file>).')
    seeds: Seeds = Field([0], description='Training seeds of every method that does not name its own.')
    per_class: Counts = Field(
        [],
        description='Few-shot: every data set with these numbers of training images per class, instead of all images.',
    )
    amp: StrictBool = Field(False, description='Train and test in bfloat16.')
    keep: Literal['best', 'all'] = Field(
        'best', description='Checkpoints to keep of a finished run: the tested one, or all.'
    )
    pictures: StrictBool = Field(True, description='Draw the counterfactual images of every mask and fill.')
    cfg_options: CfgOptions = Field(
        {},
        description='Config values of every run. Values of a data set, and then values of a method, take precedence.',
    )
    slurm: dict[Text, StrictStr | StrictInt | StrictFloat | StrictBool] = Field(
        {}, description='Of --executor slurm: resources of every job, as submitit names them.'
    )
    tune: TuneSpec | None = Field(None, description='Tune every trained method before its runs.')
    datasets: Annotated[dict[Text, Annotated[DatasetSpec, ShortForm()]], AfterValidator(check_folder_names)] = Field(
        {}, description='Data sets by name; without them, a method names the path of its config.'
    )
    average_of: Text | None = Field(
        None,
        description='A test set: its mean over the data sets too, which are the domains that a benchmark leaves out.',
    )
    methods: dict[Text, Annotated[MethodSpec, ShortForm()]] = Field(
        min_length=1, description='Methods by name. {key} in a name stands for the value of a swept key.'
    )


def read_study(path: str) -> StudySpec:
    """Read a study file: YAML, JSON, or Python as a config.

    Args:
        path: The file, or ``mmcfmask::name`` for one of the package; its name gives ``out`` where the file does not.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: It cannot be read, or a key or value is not allowed; the message starts with ``path``.
    """
    path = find_file(path, 'studies')
    check_text_file(path, 'study')
    values = read_config(path).to_dict()
    if Path(path).suffix in ('.yaml', '.yml'):
        with blame(path):
            check_repeated_keys(yaml.compose(Path(path).read_text(encoding='utf-8'), Loader=SafeYAMLLoader))
    if values.get('out') is None:
        values['out'] = str(Path('work_dirs') / Path(path).stem)
    return parse(StudySpec, values, path)


def parse(model: type[BaseModel], values: Mapping[str, Any], where: str = '', prefix: Sequence[str] = ()) -> Any:
    """Validate values by a model of this module.

    Args:
        model: The model.
        values: What it is made of.
        where: The file, for the error.
        prefix: The keys in the file that lead to ``values``, for the error.

    Raises:
        ConfigError: The first problem, in one line: file, key, value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        text = describe_error(error, model, prefix)
    raise ConfigError(f'{where}: {text}' if where else text)


def check_repeated_keys(node: yaml.Node | None) -> None:
    """Raise a ConfigError for a key that a mapping has twice; YAML would silently keep the last one."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    lines: dict[str, int] = {}
    for key, value in pairs:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigError(f'the key {key.value!r} is given twice, in lines {lines[key.value]} and {line}')
        lines[key.value] = line
        check_repeated_keys(value)
