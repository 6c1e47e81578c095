"""What a study file may say, and the message for a mistake."""

import json
import re
from pathlib import Path

import pytest

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.schema import PATH, make_schema
from mmcfmask.experiments.spec import MethodSpec, StudySpec, parse, read_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / 'studies').glob('*.yaml'))


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / 'my.yaml').write_text(text)
        return str(tmp_path / 'my.yaml')

    return write


def test_a_file_is_read(write):
    spec = read_study(write('methods: {FT: ft, S: {soup: FT, seeds: [1, 2]}}\nseeds: [0, 1]\namp:\n'))
    assert (spec.out, spec.seeds, spec.amp, spec.keep, spec.datasets) == ('work_dirs/my', [0, 1], False, 'best', {})
    assert spec.methods == {'FT': MethodSpec(config='ft'), 'S': MethodSpec(soup='FT', seeds=[1, 2])}


def test_a_file_that_cannot_be_read(write, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no study'):
        read_study(str(tmp_path / 'gone.yaml'))
    for text, message in [
        ('methods: {FT: [', 'my.yaml: while parsing'),
        ('methods:\n  FT: ft\n  FT: fd', "my.yaml: the key 'FT' is given twice, in lines 2 and 3"),
        ('methods: !!python/object/apply:os.getcwd []', 'my.yaml: could not determine a constructor'),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_study(write(text))


@pytest.mark.parametrize(
    'text, message',
    [
        ('method: {FT: ft}', "there is no key 'method'. Did you mean 'methods'?"),
        ('seeds: [0]', 'methods is missing'),
        ('methods: {FT: ft}\nvalue:', "there is no key 'value'."),
        ('methods: {FT: {config: ft, value: null}}', "methods['FT'] has no 'value'."),
        ('methods: {}', 'methods is empty: it needs at least one value'),
        ('methods: [ft]', "methods must be a mapping of names to values, but is ['ft']"),
        ('methods: {1: ft}', 'methods: the name 1 must be a string: put it in quotes'),
        ('methods: {"": ft}', 'methods: a name is empty'),
        ('methods: {FT: [ft]}', "methods['FT'] must be a config or a mapping of names to values, but is ['ft']"),
        ('methods: {FT: }', "methods['FT'] must be a config or a mapping of names to values, but is None"),
        ('methods: {FT: ft}\nseeds: 3', 'seeds must be a list, such as [a, b], but is 3'),
        ('methods: {FT: ft}\nseeds: [0, a]', "seeds[1] must be an integer, but is 'a'"),
        ('methods: {FT: ft}\nseeds: [true]', 'seeds[0] must be an integer, but is True'),
        ('methods: {FT: ft}\nseeds: [-1]', 'seeds[0] must be at least 0, but is -1'),
        ('methods: {FT: ft}\nseeds: [4294967296]', 'seeds[0] must be less than 4294967296, but is 4294967296'),
        ('methods: {FT: ft}\nseeds: []', 'seeds is empty: it needs at least one value'),
        ('methods: {FT: ft}\nseeds: [0, 0]', 'seeds must be different numbers, but is [0, 0]'),
        ('methods: {FT: ft}\namp: "yes"', "amp must be true or false, but is 'yes'"),
        ('methods: {FT: ft}\nkeep: none', "keep must be 'best' or 'all', but is 'none'"),
        ('methods: {FT: ft}\nout: ""', 'out is empty: it needs at least one character'),
        ('methods: {FT: ft}\ncfg_options: {1: 2}', 'cfg_options: the name 1 must be a string'),
        (
            'methods: {FT: ft}\ncfg_options: {a.b: 1e-4}',
            "cfg_options: a.b is the string '1e-4', not a number: in YAML, ",
        ),
        ('methods: {FT: ft}\ndatasets: [a]', "datasets must be a mapping of names to values, but is ['a']"),
        ('methods: {FT: ft}\ndatasets: {x: {}}', "datasets['x'].config is missing"),
        ('methods: {FT: ft}\ndatasets: {x: {config: a, more: 1}}', "datasets['x'] has no 'more'. It can have config, "),
        ('methods: {FT: ft}\ndatasets: {a/b: c}', "datasets: 'a/b' becomes the name of a file or folder"),
        ('methods: {FT: ft}\ndatasets: {..: c}', "datasets: '..' becomes the name of a file or folder"),
        ('methods: {FT: {config: 3}}', "methods['FT'].config must be a string, but is 3"),
        ('methods: {FT: {config: ""}}', "methods['FT'].config is empty"),
        ('methods: {FT: {confg: ft}}', "methods['FT'] has no 'confg'. Did you mean 'config'?"),
        ('methods: {FT: {config: ft, seeds: 3}}', "methods['FT'].seeds must be a list, such as [a, b], but is 3"),
        ('methods: {FT: {config: ft, seeds: [0, 1.5]}}', "methods['FT'].seeds[1] must be an integer, but is 1.5"),
        ('methods: {FT: {config: ft, datasets: [3]}}', "methods['FT'].datasets[0] must be a string, but is 3"),
        (
            'methods: {FT: {config: ft, cfg_options: {a.b: 1.5e3}}}',
            "methods['FT'].cfg_options: a.b is the string '1.5e3'",
        ),
        ('methods: {FT: {config: ft, sweep: {a.b: 3}}}', "methods['FT'].sweep['a.b'] must be a list, such as [a, b]"),
        ('methods: {FT: {config: ft, sweep: {a.b: []}}}', "methods['FT'].sweep['a.b'] is empty"),
        ('methods: {FT: ft}\ntune: {gird: {a.b: [1]}}', "tune has no 'gird'. Did you mean 'grid'?"),
        ('methods: {FT: ft}\ntune: {grid: {a.b: 1}}', "tune.grid['a.b'] must be a list, such as [a, b], but is 1"),
        ('methods: {FT: ft}\ntune: {grid: {a.b: []}}', "tune.grid['a.b'] is empty: it needs at least one value"),
        ('methods: {FT: ft}\ntune: {grid: {a.b: [1e-4]}}', "tune.grid: a.b is the string '1e-4', not a number: in "),
        ('methods: {FT: ft}\ntune: {grid: {a.b: [.nan]}}', 'tune.grid: a.b has the value nan, which is not a finite '),
        ('methods: {FT: ft}\ntune: {grid: {a.b: [1, 1]}}', 'tune.grid: a.b has the value 1 twice'),
        ('methods: {FT: ft}\ntune: {seed: true}', 'tune.seed must be an integer, but is True'),
        ('methods: {FT: {config: ft, grid: {a.b: x}}}', "methods['FT'].grid['a.b'] must be a list, such as [a, b], "),
        ('methods: {FT: {config: ft, tuned_as: 3}}', "methods['FT'].tuned_as must be a string, but is 3"),
        ('methods: {W: {wise_ft: [FT]}}', "methods['W'].wise_ft must be a string, but is ['FT']"),
        ('methods: {W: {wise_ft: FT, alpha: 5}}', "methods['W'].alpha must be at most 1, but is 5"),
        ('methods: {W: {wise_ft: FT, alpha: true}}', "methods['W'].alpha must be a number, but is True"),
        ('methods: {W: {wise_ft: FT, alpha: .nan}}', "methods['W'].alpha must be a finite number, but is nan"),
        ('methods: {S: {soup: FT, greedy: 5}}', "methods['S'].greedy must be true or false, but is 5"),
        (
            'methods: {G: {evaluate: FT, options: --knn-gate}}',
            "methods['G'].options must be a list, such as [a, b], but ",
        ),
        (
            'methods: {G: {evaluate: FT, options: [--look]}}',
            "methods['G'].options[0] must be '--knn-gate', '--vrf' or '--relevance-crop', but is '--look'",
        ),
    ],
)
def test_mistakes_are_named(write, text, message):
    with pytest.raises(ConfigError) as raised:
        read_study(write(text))
    assert f'my.yaml: {message}' in str(raised.value) and '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'text, message',
    [
        ('G: {retest: FT}', "methods['G']: retest is now evaluate"),
        ('"{retest} + gate": {sweep: {retest: [FT]}}', "methods['{retest} + gate']: retest is now evaluate"),
        ('G: {evaluate: FT, options: [--gate]}', "methods['G']: --gate is now --knn-gate"),
        ('G: {evaluate: FT, options: [--second-look]}', "methods['G']: --second-look is now --relevance-crop"),
    ],
)
def test_keys_of_an_earlier_version_name_the_new_ones(write, text, message):
    with pytest.raises(ConfigError, match=re.escape(f'my.yaml: {message}') + '$'):
        read_study(write(f'methods:\n  {text}\n'))


def test_numbers_of_an_accepted_message_are_numbers(write):
    """The spelling that a message recommends is read as a number."""
    for wrong in ('1e-4', '1.5e3', '2E5', '-3e8'):
        with pytest.raises(ConfigError, match='in YAML, write') as raised:
            read_study(write(f'methods: {{FT: ft}}\ncfg_options: {{a.b: {wrong}}}'))
        right = str(raised.value).rpartition(' ')[2]
        spec = read_study(write(f'methods: {{FT: ft}}\ncfg_options: {{a.b: {right}}}'))
        assert spec.cfg_options == {'a.b': float(wrong)}


def test_the_shipped_schema_is_up_to_date():
    assert json.loads(PATH.read_text()) == make_schema(), 'run python -m mmcfmask.experiments.schema'


def check_by_schema(value, schema, definitions, where='study'):
    """The part of JSON schema that the shipped one uses."""
    if '$ref' in schema:
        schema = definitions[schema['$ref'].rpartition('/')[2]]
    if 'anyOf' in schema:
        errors = []
        for option in schema['anyOf']:
            try:
                return check_by_schema(value, option, definitions, where)
            except AssertionError as error:
                errors.append(str(error))
        raise AssertionError(errors)
    types = dict(object=dict, array=list, string=str, boolean=bool, integer=int, number=(int, float), null=type(None))
    if 'type' in schema:
        assert isinstance(value, types[schema['type']]), (where, value, schema['type'])
    assert value in schema.get('enum', [value]), (where, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert schema.get('minimum', value) <= value <= schema.get('maximum', value), (where, value)
    if isinstance(value, list):
        assert len(value) >= schema.get('minItems', 0), where
        for item in value:
            check_by_schema(item, schema['items'], definitions, where)
    if isinstance(value, dict):
        assert set(schema.get('required', ())) <= set(value), (where, value)
        others = schema.get('additionalProperties', True)
        for key, item in value.items():
            part = schema.get('properties', {}).get(key, others)
            assert part is not False, (where, key)
            if part is not True:
                check_by_schema(item, part, definitions, f'{where}.{key}')


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.name)
def test_shipped_studies_fit_the_schema_that_they_name(path):
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r'# yaml-language-server: \$schema=(\S+)', first)[1]
    assert (path.parent / named).resolve() == PATH.resolve()
    schema = json.loads(PATH.read_text())
    read_study(str(path))  # by the model
    from mmcfmask.engine.config import read_config

    values = read_config(str(path)).to_dict()
    check_by_schema(values, schema, schema['$defs'])
    values['methods']['FT'] = {'confg': 'ft'}
    with pytest.raises(AssertionError, match='confg'):
        check_by_schema(values, schema, schema['$defs'])


def test_every_key_has_a_description_for_editors():
    schema = make_schema()
    for part in [schema, *schema['$defs'].values()]:
        assert all(value.get('description') for value in part['properties'].values())


def test_a_study_made_in_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"^methods\['FT'\] has no 'cfg_option'. Did you mean 'cfg_options'"):
        parse(StudySpec, dict(methods={'FT': dict(config='ft', cfg_option={})}))
