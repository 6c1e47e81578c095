"""Sweeps, and methods that use other methods."""

import pytest

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.methods import expand_methods, expand_sweep, select_methods
from mmcfmask.experiments.spec import MethodSpec, StudySpec, parse


def expand(methods):
    return expand_methods(parse(StudySpec, dict(methods=methods)).methods)


def test_a_sweep_gives_every_combination():
    key = 'model.data_preprocessor.'
    entry = MethodSpec(
        config='cfmask',
        cfg_options={'a.b': 1},
        sweep={key + 'mask': ['object', 'random'], key + 'fill': ['none', 'multi']},
    )
    methods = expand_sweep('KD {mask}', entry)
    assert [method.name for method in methods] == [
        'KD object fill=none',
        'KD object fill=multi',
        'KD random fill=none',
        'KD random fill=multi',
    ]
    assert methods[1].cfg_options == {'a.b': 1, key + 'mask': 'object', key + 'fill': 'multi'}
    assert methods[1].config == 'cfmask' and methods[1].source is None


def test_keys_of_the_entry_can_be_swept():
    methods = expand_sweep('{wise_ft} + WiSE-FT', MethodSpec(sweep={'wise_ft': ['FT', 'FD'], 'alpha': [0.25]}))
    assert [(method.name, method.source, method.alpha) for method in methods] == [
        ('FT + WiSE-FT alpha=0.25', 'FT', 0.25),
        ('FD + WiSE-FT alpha=0.25', 'FD', 0.25),
    ]


@pytest.mark.parametrize(
    'methods, message',
    [
        ({'FT': {}}, r"methods\['FT'\]: it must have one of config, wise_ft, evaluate, soup, but has none"),
        ({'FT': dict(config='ft', soup='FT')}, 'but has config and soup'),
        ({'FT': dict(config='ft', sweep={'alpa': [3]})}, r"methods\['FT'\].sweep has no 'alpa'. Did you mean 'alpha'"),
        ({'FT': 'ft', 'W': dict(sweep={'wise_ft': ['FT'], 'alpha': [7]})}, r"methods\['W'\].alpha must be at most 1"),
        (
            {'FT': dict(config='ft', sweep={f'a.b{i}': [1, 2, 3, 4] for i in range(6)})},
            'has more than 1000 combinations',
        ),
        ({'W': dict(wise_ft='FT')}, r"methods\['W'\] uses 'FT', but no method has this name. There are W"),
        ({'FT': 'ft', 'W': dict(wise_ft='F')}, "Did you mean 'FT'?"),
        ({'FT': 'ft', 'W': dict(wise_ft='FT'), 'S': dict(soup='W')}, "uses 'W', which must be a method with a config"),
        ({'FT': 'ft', 'S': dict(soup='FT', greedy=True, stock=True)}, 'stock is a kind of soup: .* without greedy'),
        ({'FT': dict(config='ft', stock=True)}, 'stock is a kind of soup: it needs soup'),
        ({'S': dict(soup='S')}, "uses 'S', which must be a method with a config"),
        (
            {'FT': 'ft', 'W': dict(wise_ft='FT', cfg_options={'a.b': 1})},
            "uses the config of 'FT': set the cfg_options there",
        ),
        (
            {'FT': 'ft', 'G': dict(evaluate='FT')},
            r'evaluate needs options: \[--knn-gate\] or \[--vrf\], \[--relevance-crop\], or both',
        ),
        ({'FT': 'ft', 'G': dict(wise_ft='FT', options=['--knn-gate'])}, 'options belong to evaluate, .* has wise_ft'),
        ({'FT': 'ft', 'F{x}': dict(config='fd', sweep={'a.x': ['T']})}, "two methods are named 'FT'"),
        ({'{retest} + gate': dict(options=['--knn-gate'], sweep={'evaluate': ['FT']})}, 'is now {evaluate}'),
        ({'..': 'ft'}, 'methods.*must be a plain name'),
        ({'/': 'ft'}, 'methods.*must be a plain name'),
    ],
)
def test_mistakes(methods, message):
    with pytest.raises(ConfigError, match=message):
        expand(methods)


def test_selection_by_patterns():
    methods = expand({'FT': 'ft', 'FD': 'fd', 'LP': 'lp', 'FT + WiSE-FT': dict(wise_ft='FT')})
    assert select_methods(methods, None) == {'FT', 'FD', 'LP', 'FT + WiSE-FT'}
    assert select_methods(methods, ['* WiSE-FT', 'LP']) == {'FT', 'LP', 'FT + WiSE-FT'}
    with pytest.raises(ConfigError, match=r"no method is named 'CF\*'. There are FT, FD"):
        select_methods(methods, ['CF*'])
    with pytest.raises(ConfigError, match=r"no method is named 'FT \+ WiSE'. Did you mean 'FT \+ WiSE-FT'"):
        select_methods(methods, ['FT + WiSE'])
