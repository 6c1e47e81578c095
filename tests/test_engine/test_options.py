"""Values of --cfg-options arrive as they are written."""

import pytest

from mmcfmask.engine.options import parse_options, parse_value
from mmcfmask.errors import ConfigError


@pytest.mark.parametrize(
    'text, value',
    [
        ('1', 1),
        ('1e-4', 1e-4),
        ('-3', -3),
        ('+.5', 0.5),
        ('inf', float('inf')),
        ('True', True),
        ('false', False),
        ('None', None),
        ("'123'", '123'),
        ('ViT-B-16', 'ViT-B-16'),
        ('a photo of a {}.', 'a photo of a {}.'),
        ('/data/a, b', '/data/a, b'),
        ('2024_01', '2024_01'),
        ('007', '007'),
        ("it's", "it's"),
        ('{config}', '{config}'),
        ('', ''),
        (' x ', ' x '),
        ('(a)', '(a)'),
        ('[a', '[a'),
        ('...', '...'),
        ('0.9,0.999', [0.9, 0.999]),
        ('(1, 2)', (1, 2)),
        ('[fog, light snow]', ['fog', 'light snow']),
        ("[it's, 1]", ["it's", 1]),
        ('[]', []),
        ("['a photo of a {}.', 'b, c']", ['a photo of a {}.', 'b, c']),
        ('[(a,1),[b]]', [('a', 1), ['b']]),
        ("dict(type='L2SP', beta=1e-3)", dict(type='L2SP', beta=1e-3)),
        ("[dict(type='L2SP')]", [dict(type='L2SP')]),
        ("{'a': [1]}", {'a': [1]}),
        ('__import__("os").getcwd()', '__import__("os").getcwd()'),
        ('1if', '1if'),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    'text, message',
    [
        ('dict(type=L2SP)', 'looks like a dict but is not Python: put the strings in it in quotes'),
        ('{a: 1}', 'looks like a dict'),
        ('dict(a=f())', 'looks like a dict'),
        ('[[1]', 'not closed'),
        ("['a]", 'not closed'),
        ('[dict(type=X)]', 'looks like a dict'),
    ],
)
def test_what_cannot_be_expressed(text, message):
    with pytest.raises(ConfigError, match=f'key=.*{message}'):
        parse_value(text, 'key')


@pytest.mark.parametrize(
    'text, value',
    [
        ('00', '00'),
        ('[00]', ['00']),
        ('[00,01,10]', ['00', '01', 10]),
        ('[2024_01, 2]', ['2024_01', 2]),
        ('0', 0),
        ('[0, 0.5, 0x10]', [0, 0.5, 16]),
        ("['00', 0]", ['00', 0]),
        ("dict(a='0_1')", dict(a='0_1')),
    ],
)
def test_numbers_that_are_names(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    'text, message',
    [
        ('[a,b],[c,d]', 'closed before it is opened'),
        ('[a],b]', 'closed before it is opened'),
        ('[a,,b]', 'nothing between two commas'),
        ('[1,,2]', 'nothing between'),
        ('[,a]', 'nothing between'),
    ],
)
def test_lists_that_cannot_be_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_value(text, 'key')


def test_options():
    assert parse_options(['a.b=3', 'c=None', 'd=[1,2]', 'e=x', 'f=a=b', 'a.b=4']) == {
        'a.b': 4,
        'c': None,
        'd': [1, 2],
        'e': 'x',
        'f': 'a=b',
    }
    for wrong in ('lr', '=1', 'a..b=1', 'a.=1'):
        with pytest.raises(ConfigError, match='is not key=value'):
            parse_options([wrong])
