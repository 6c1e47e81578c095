"""The pages of the documentation: their links lead somewhere, their commands and configs work."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import runpy
import shlex
import sys
import textwrap
from functools import cache, cached_property
from itertools import product

import pytest
import yaml
from mmengine.config import Config
from mmpretrain.registry import HOOKS
from pages import INDENTED, PAGES, ROOT, blocks, prose, table

import mmcfmask_cli
from mmcfmask.engine.checks.schema import check_schema
from mmcfmask.engine.checks.validation import check_validation
from mmcfmask.engine.config import load_config
from mmcfmask.engine.test_loop import choose_shifts, list_metrics
from mmcfmask.experiments.spec import StudySpec, read_study
from mmcfmask.models import CounterfactualClassifier, KNNGate
from mmcfmask.models.losses import Step

# Links


def anchors(name: str) -> set[str]:
    """As GitHub makes them."""
    found = set()
    for title in re.findall(r'^#+ (.*)$', prose(name), re.MULTILINE):
        text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title).replace('`', '').lower()
        found.add(re.sub(r'[^\w\- ]', '', text).strip().replace(' ', '-'))
    return found


@pytest.mark.parametrize('name', PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(name)):
        if re.match(r'[a-z]+:', target):
            assert target.startswith('https://'), target
            continue
        path, _, anchor = target.partition('#')
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), f'{name} links to {path}'
        if anchor:
            assert anchor in anchors(str(file.relative_to(ROOT))), f'{name} links to {target}'


@pytest.mark.parametrize('name', PAGES)
def test_files_that_are_named_exist(name):
    named = re.findall(r'`((?:configs|tools|studies|docs|tests|mmcfmask|examples)/[\w/.-]+\.\w+)`', PAGES[name])
    assert [path for path in named if not (ROOT / path).exists() and not re.search(r'[/_]a/', path)] == []


def test_every_page_is_in_the_index_and_on_the_site():
    text = re.sub(r'!!python\S*', '', (ROOT / 'mkdocs.yml').read_text())
    entries = [entry for part in yaml.safe_load(text)['nav'] for entry in next(iter(part.values()))]
    on_site = {next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in entries}
    pages = {name.removeprefix('docs/') for name in PAGES if name.startswith('docs/')}
    assert on_site == pages
    linked = set(re.findall(r'\]\(([\w/.]+\.md)\)', PAGES['docs/README.md']))
    assert {page for page in pages if not page.startswith('api/')} - {'README.md'} <= linked


def test_names_of_before_are_gone():
    """But for the changelog's table of them."""
    old = re.compile(
        r'model\.gate|\+ gate|--gate|second.look|look_twice|by_start|\bretest\b|auxiliary|ConformalGate|neighbours|'
        r'lean_vit|\bcolors=|as it comes|random_colors'
    )
    for name, text in PAGES.items():
        if name != 'CHANGELOG.md':
            assert not old.findall(text), name


def test_equations_have_code_and_tests():
    rows = table('docs/architecture.md', '| Equation')
    assert len(rows) > 15
    for cell in (cell for row in rows for cell in row[1:]):
        file, names = re.fullmatch(r'\[`[\w/.]+`\]\((\S+)\): (.*)', cell).groups()
        defined = {getattr(node, 'name', None) for node in ast.parse((ROOT / 'docs' / file).read_text()).body}
        assert set(re.findall(r'`(\w+)`', names)) <= defined, file


def test_training_step_is_that_of_the_code():
    (code,) = blocks('docs/architecture.md', 'python')
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(CounterfactualClassifier.loss))).body
    assert ast.unparse(ast.parse(code)) == '\n'.join(map(ast.unparse, function.body[1:]))
    for name in ('relevance', 'counterfactual', 'counterfactual_features', 'teacher_features'):
        assert isinstance(vars(Step)[name], cached_property) and f'`{name}`' in PAGES['docs/architecture.md']


def test_packages_of_the_architecture():
    rows = table('docs/architecture.md', '| Package')
    named = {path.strip('`').strip('/') for row in rows for path in row[0].split(', ')}
    folders = [path.parent for path in (ROOT / 'mmcfmask').rglob('__init__.py')]
    packages = {str(folder.relative_to(ROOT)) for folder in folders} - {'mmcfmask'}
    modules = {f'mmcfmask/{path.name}' for path in (ROOT / 'mmcfmask').glob('[a-z]*.py')} - {'mmcfmask/version.py'}
    assert packages | modules <= named, packages | modules - named


# Commands


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of a block or of inline code that calls one of our scripts."""
    found = []
    for name, text in PAGES.items():
        lines = [line for code in [*blocks(name, 'bash'), *INDENTED.findall(text)] for line in joined(code)]
        lines += re.findall(r'`([^`\n]+)`', prose(name).replace('\n', ' '))
        for line in lines:
            line = re.sub(r'\s#( .*)?$', '', re.sub(r'^([A-Z_]+=\S+ )+', '', line.strip()))
            if re.match(r'(python )?tools/\w+\.(py|sh) \S|make [\w-]+$|mmcfmask [a-z-]+ ', line):
                found.append((name, line))
    return list(dict.fromkeys(found))


def joined(code: str) -> list[str]:
    return re.sub(r'\s*\\\n\s*', ' ', code).splitlines()


@cache
def help_of(tool: str) -> str:
    with (
        contextlib.redirect_stdout(io.StringIO()) as shown,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit),
    ):
        patch.setattr(sys, 'argv', [tool, '--help'])
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    return shown.getvalue()


def parsed(command: str) -> tuple[str, list[str]]:
    """(name of the tool, its arguments)."""
    words = [word for word in shlex.split(command.replace('…', ' ')) if word != 'python']
    if words[0] == 'mmcfmask':
        return mmcfmask_cli.COMMANDS[words[1]][0].removesuffix('.py'), words[2:]
    if words[0] == 'tools/launch.py':  # options of torchrun, then the script that it starts
        words = words[[word.startswith('tools/') for word in words].index(True, 1) :]
    script = ROOT / words[0]
    assert script.exists(), command
    if script.suffix == '.py':
        return script.stem, words[1:]
    kind, tool = script.stem.split('_')
    skipped = 2 if kind == 'slurm' else 0  # PARTITION JOB
    return tool, words[1 + skipped :]


@pytest.mark.parametrize(('page', 'command'), commands())
def test_commands(page, command):
    """The script is there, has these options, and the configs exist and take these overrides."""
    if command.startswith('make '):
        assert f'\n{command.removeprefix("make ")}:' in (ROOT / 'Makefile').read_text()
        return
    if '|' in command:  # mmcfmask train|test|…
        assert set(re.findall(r'[a-z-]+', command.split()[1])) <= set(mmcfmask_cli.COMMANDS)
        return
    tool, words = parsed(command)
    text = help_of(tool)
    for option in (word for word in words if word.startswith('--')):
        assert re.search(rf'{option}\b', text), f'tools/{tool}.py has no {option}'
    configs = [word.split('=')[-1] for word in words if re.search(r'(configs|studies)/', word) and 'METHOD' not in word]
    assert [path for path in configs if not (ROOT / path).exists()] == []
    if '--cfg-options' in words:
        options = words[words.index('--cfg-options') + 1 :]
        options = [option for option in options if not option.startswith('--') and '=' in option]
        defaults = {'pacs': 'configs/pacs/cfmask_vitb16.py', 'shapes': 'configs/shapes/cfmask.py'}
        config = next((path for path in configs if path.startswith('configs/')), 'configs/cfmask_vitb16.py')
        config = next((defaults[key] for key in defaults if key in command), config)
        check_overrides(config, [expanded for option in options for expanded in expand(option)])


def expand(option: str) -> list[str]:
    """As bash does with {a,b}."""
    parts = re.split(r'\{([^}]*)\}', option)
    choices = [part.split(',') if index % 2 else [part] for index, part in enumerate(parts)]
    return [''.join(choice) for choice in product(*choices)]


def check_overrides(config: str, options: list[str]) -> None:
    """Refuse unknown keys, and values of the wrong kind where they are not placeholders."""
    parse = importlib.import_module('mmcfmask.engine.options').parse_options
    values = {}
    for option in options:
        key, _, value = option.partition('=')
        if key.startswith('model.knn_gate.'):
            assert key.split('.')[2] in inspect.signature(KNNGate).parameters, option
        elif not re.fullmatch(r'[A-Z]+|', value):
            values |= parse([option])
    check_schema(load_config(str(ROOT / config), values), complete=False)


def test_overrides_in_the_text():
    """`key=value` of a config, wherever a sentence names one."""
    keys = r'(?:model|train_cfg|train_dataloader|optim_wrapper|randomness|tf32)[\w.]*'
    for name in PAGES:
        for option in re.findall(rf'`({keys}=[\w.-]+)`', prose(name)) if name != 'CHANGELOG.md' else ():
            check_overrides('configs/cfmask_vitb16.py', [option])


# Blocks of code


@pytest.mark.parametrize('name', PAGES)
def test_python_blocks_compile(name):
    for code in blocks(name, 'python'):
        ast.parse(re.sub(r'\{\{([\w.]+)\}\}', r'\1', code))


@pytest.mark.parametrize('name', [name for name in PAGES if any('_base_ =' in code for code in blocks(name, 'python'))])
def test_configs_load_and_are_valid(name, tmp_path, monkeypatch):
    configs = [code for code in blocks(name, 'python') if '_base_ =' in code]
    for code in (code for code in blocks(name, 'python') if 'register_module' in code):
        (tmp_path / 'my_losses.py').write_text(re.sub(r'class (\w+)', r'class \1ForTest', code))
        monkeypatch.syspath_prepend(str(tmp_path))
        configs = [re.sub(r"type='CosineSP'", "type='CosineSPForTest'", code) for code in configs]
    for code in configs:
        path = tmp_path / 'example.py'
        path.write_text(code)
        check_schema(load_config(str(path), {}))
    sys.modules.pop('my_losses', None)


def test_larger_images(tmp_path):
    (code,) = (code for code in blocks('docs/backbones.md', 'python') if '336' in code)
    (tmp_path / 'example.py').write_text(code)
    cfg = load_config(str(tmp_path / 'example.py'), {})
    loaders = {'train': cfg.train_dataloader, 'val': cfg.val_dataloader, **cfg.test_dataloader}
    for name, loader in loaders.items():
        steps = {step['type']: step for step in loader.dataset.pipeline}
        assert steps['ResizeCenterCrop']['image_size'] == cfg.model.backbone.image_size == 336, name
        assert ('CropBorder' in steps) == (name == 'objectnet')


def test_study(tmp_path):
    path = tmp_path / 'study.yaml'
    path.write_text(blocks('docs/studies.md', 'yaml')[0])
    study = read_study(str(path))
    assert study.methods['FT + k-NN gate'].evaluate == 'FT' and study.datasets['pacs'].cfg_options
    keys = {key for row in table('docs/studies.md', '| key') for key in re.findall(r'`(\w+)`', row[0])}
    assert keys | {'methods'} == set(StudySpec.model_fields)
    for file in re.findall(r'`(studies/\w+\.yaml)`', PAGES['docs/studies.md']):
        read_study(str(ROOT / file))


@pytest.fixture
def example(tmp_path):
    configs = [code for code in blocks('docs/evaluation.md', 'python') if '_base_ =' in code]
    assert len(configs) == 3

    def load(index):
        (tmp_path / 'example.py').write_text(configs[index])
        return Config.fromfile(tmp_path / 'example.py')

    return load


def test_shifts_during_training(example):
    cfg = example(0)
    check_validation(cfg)
    assert choose_shifts(cfg.val_dataloader, cfg.val_cfg.id_set, None) == ['sketch']
    assert cfg.val_dataloader.held_out.dataset.holdout.part == 'held_out'
    assert cfg.val_dataloader.sketch.dataset.pipeline[0].type
    assert list_metrics('sketch', cfg.val_evaluator) == [dict(type='ShiftAccuracy')] and cfg.train_cfg.val_interval == 2
    cfg.default_hooks.checkpoint.save_best = 'sketch/top1'
    with pytest.raises(ValueError, match='would choose by a distribution shift'):
        check_validation(cfg)


def test_small_imagenet_c(example):
    cfg = example(1)
    assert choose_shifts(cfg.test_dataloader, cfg.test_cfg.id_set, cfg.test_cfg.shifts) == ['corrupted']
    assert cfg.test_evaluator.evaluators.corrupted.type == 'CorruptionError'
    assert [step.type for step in cfg.test_dataloader.corrupted.dataset.pipeline][-2:] == ['Corrupt', 'PackInputs']


def test_wise_ft_hook(example):
    hooks = example(2).default_hooks
    assert {'checkpoint', 'logger', 'wise_ft'} <= set(hooks)
    assert HOOKS.build(hooks.wise_ft).alphas == [0, 0.5, 1]
