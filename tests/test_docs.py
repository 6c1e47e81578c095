"""The pages say what the code does: links, commands, configs, and every number that the code knows."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import runpy
import shlex
import statistics
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmpretrain.registry import HOOKS, MODELS

import mmcfmask_cli
from mmcfmask.counterfactual import random_views
from mmcfmask.datasets import shapes
from mmcfmask.datasets.images import EXTENSIONS
from mmcfmask.datasets.layouts import SETS
from mmcfmask.engine.checks.schema import check_schema
from mmcfmask.engine.checks.validation import check_validation
from mmcfmask.engine.config import load_config
from mmcfmask.engine.test_loop import choose_shifts, metrics_of
from mmcfmask.evaluation import describe_run, describe_set, metrics, read_reference_models, reference_line
from mmcfmask.models import CARFT, L2SP, CLIPDistillHead, KNNGate, LipsumFT
from mmcfmask.models.inference.relevance_crop import CROP_SCALE
from mmcfmask.models.preprocessor import PUBLISHED_VALUES

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
    for path in [*ROOT.glob('*.md'), *sorted((ROOT / 'docs').rglob('*.md'))]
}
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^    .*\n?)+', re.MULTILINE)


def prose(name: str) -> str:
    """A page without its blocks of code."""
    return FENCED.sub('', PAGES[name])


def blocks(name: str, language: str) -> list[str]:
    return [code for kind, code in FENCED.findall(PAGES[name]) if kind == language]


def table(name: str, header: str) -> list[list[str]]:
    """The rows of the first table of a page whose header starts so, without emphasis and code marks."""
    lines = PAGES[name].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            return rows
        rows.append([cell.strip().strip('*') for cell in line.strip('|').split('|')])
    return rows


def number(text: str) -> float:
    return float(text.replace(',', '').replace('−', '-').split()[0])


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
        assert steps['ResizeEdge']['scale'] == steps['CenterCrop']['crop_size'] == 336, name
        assert ('CropBorder' in steps) == (name == 'objectnet')


def test_yaml_blocks():
    study = yaml.safe_load(blocks('docs/studies.md', 'yaml')[0])
    assert (
        set(study) == {'seeds', 'cfg_options', 'datasets', 'methods'}
        and 'evaluate' in study['methods']['FT + k-NN gate']
    )


@pytest.fixture
def example(tmp_path):
    configs = [code for code in blocks('docs/evaluation.md', 'python') if '_base_ =' in code]
    assert len(configs) == 2

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
    assert metrics_of('sketch', cfg.val_evaluator) == [dict(type='ShiftAccuracy')] and cfg.train_cfg.val_interval == 2
    cfg.default_hooks.checkpoint.save_best = 'sketch/top1'
    with pytest.raises(ValueError, match='would choose by a distribution shift'):
        check_validation(cfg)


def test_wise_ft_hook(example):
    hooks = example(1).default_hooks
    assert {'checkpoint', 'logger', 'wise_ft'} <= set(hooks)
    assert HOOKS.build(hooks.wise_ft).alphas == [0, 0.5, 1]


# Numbers


def test_shapes():
    cfg = Config.fromfile(ROOT / 'configs/_base_/shapes.py')
    sizes = {
        dataset.split: dataset.size
        for dataset in (
            cfg.train_dataloader.dataset,
            cfg.val_dataloader.dataset,
            *(loader.dataset for loader in cfg.test_dataloader.values()),
        )
    }
    sizes['pretrain'] = shapes.SPLIT_SIZES['pretrain']
    documented = {row[0].strip('`'): int(number(row[1])) for row in table('docs/shapes.md', '| split')}
    assert documented == sizes and tuple(documented) == shapes.SPLITS
    text = ' '.join(PAGES['docs/shapes.md'].split())
    assert f'up to {shapes.SPLIT_SIZES["train"]} training images' in text
    assert f'Classes: {", ".join(shapes.SHAPES_CLASSES)}.' in text
    assert f'{len(shapes.TEXTURES)} textures × {len(shapes.COLORS)} colours' in text
    assert f'{shapes.IMAGE_SIZE}×{shapes.IMAGE_SIZE}' in text


def test_mini_clip():
    text = ' '.join(PAGES['docs/shapes.md'].split())
    folder = ROOT / 'mmcfmask/assets'
    tower = yaml.safe_load((folder / 'ShapesCLIP-ViT-8-64.json').read_text())
    vision, words = tower['vision_cfg'], tower['text_cfg']
    heads = vision['width'] // vision['head_width']
    assert f'ViT {vision["image_size"]}/{vision["patch_size"]} image tower (width {vision["width"]}' in text
    assert f'{vision["layers"]} layers, {heads} heads, 1.04 M parameters)' in text
    assert f'width {words["width"]} with {words["layers"]} layers' in text
    backbone = MODELS.build(dict(type='OpenCLIPBackbone', model_name='ShapesCLIP-ViT-8-64', pretrained='shapes'))
    assert round(sum(weight.numel() for weight in backbone.parameters()) / 1e6, 2) == 1.04
    megabytes = (folder / 'ShapesCLIP-ViT-8-64.safetensors').stat().st_size / 1e6
    assert f'{megabytes:.1f} MB in fp16' in text


def test_published_sets():
    named = {row[1].strip('`'): row for row in table('docs/data.md', '| set') if row[1]}
    assert set(named) == {name for name in SETS if '-v2-' not in name} - {'imagenet-train'}
    for name, row in named.items():
        images = 75 * 50_000 if '×' in row[2] else number(row[2])
        assert images == SETS[name].images and number(row[3]) == SETS[name].num_classes, name
    assert number(table('docs/data.md', '| set')[0][2]) == SETS['imagenet-train'].images


def test_endings_of_images():
    text = PAGES['docs/data.md']
    found = re.findall(r'`(\.\w+)`', text[text.index('## Image files') : text.index('in upper or lower case')])
    assert tuple(found) == EXTENSIONS


def test_thresholds():
    rows = {row[0].strip('`'): row[1:] for row in table('docs/methods.md', '| fill')}
    documented = {
        (mask, fill): number(value)
        for fill, values in rows.items()
        for mask, value in zip(('random', 'object', 'context'), [value.strip('*') for value in values])
    }
    assert documented == PUBLISHED_VALUES
    assert 'threshold 0.3' in PAGES['README.md'] and PUBLISHED_VALUES['object', 'single'] == 0.3


def default(function, name):
    return inspect.signature(function).parameters[name].default


def test_constants_of_methods():
    text = ' '.join(PAGES['docs/methods.md'].split())
    assert (
        f'λ = {default(CLIPDistillHead, "distill_weight"):.0f} and T = {default(CLIPDistillHead, "temperature"):.0f}'
        in text
    )
    assert f'L2-SP: α = {default(L2SP, "alpha")}, β = {default(L2SP, "beta")}.' in text
    assert f'CAR-FT: w = {default(CARFT, "weight"):.0f}.' in text
    texts, length = default(LipsumFT, 'num_texts'), default(LipsumFT, 'length')
    assert f'w = {default(LipsumFT, "weight"):.0f}, M = {texts} texts of {length} tokens' in text
    plus = Config.fromfile(ROOT / 'configs/cfmask_plus_vitb16.py').model
    assert f'CE of l / {plus.head.cls_temperature:.0f}' in text
    assert f'in {100 * plus.data_preprocessor.color_mixing:.0f} %, a random matrix' in text
    rotation, zoom, shift = (default(random_views, name) for name in ('rotation', 'zoom', 'shift'))
    assert plus.data_preprocessor.views == dict(probability=0.5) and 'half of them are rotated' in text
    assert f'by up to {rotation:.0f}°, zoomed by a factor of up to {zoom:.0f} and shifted by up to a quarter' in text
    assert shift == 0.25
    assert f'{100 * default(KNNGate, "level"):.0f} % and k = {default(KNNGate, "k")}' in text
    assert f'has {CROP_SCALE} of the side' in text


def test_every_method_has_its_config():
    named = {config for row in table('docs/methods.md', '| Method') for config in re.findall(r'`([a-z0-9_]+)`', row[2])}
    assert named == {path.stem for path in (ROOT / 'configs/shapes').glob('*.py')}
    baselines = {path.stem.removesuffix('_vitb16') for path in (ROOT / 'configs/baselines').glob('*_vitb16.py')}
    assert baselines <= named


def test_recipe():
    text = ' '.join(PAGES['docs/training.md'].split())
    cfg = Config.fromfile(ROOT / 'configs/cfmask_vitb16.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == 3e-5 and 'peak learning rate 3e-5' in text
    assert f'weight decay {optimizer.weight_decay} on all parameters' in text
    assert f'clipped to {cfg.optim_wrapper.clip_grad.max_norm:.0f}' in text
    assert f'{cfg.train_cfg.max_epochs} epochs, {cfg.total_batch_size} images per optimizer step' in text
    assert f'{cfg.val_dataloader.dataset.holdout.size:,} images held out' in text


def test_reference_lines():
    names = {'ImageNet-V2': 'imagenet-v2', 'ImageNet-R': 'imagenet-r', 'ImageNet-A': 'imagenet-a'}
    names |= {'ImageNet-Sketch': 'imagenet-sketch', 'ObjectNet': 'objectnet'}
    models = read_reference_models()
    assert f'the {len(models)} models that the testbed' in ' '.join(PAGES['docs/report.md'].split())
    for title, *values in table('docs/report.md', '| | models'):
        line = reference_line(models, 'imagenet', [names[title]] if title in names else list(names.values()))
        shown = [f'{line.models}', f'{line.slope:.3f}', f'{line.intercept:.3f}', f'{line.r2:.3f}']
        assert [value.replace('−', '-') for value in values] == shown, title


def returned(function) -> set[str]:
    """Keys of the dict that a function ends with."""
    body = ast.parse(inspect.getsource(function)).body[0].body
    return {keyword.arg for keyword in body[-1].value.keywords}


def test_fields_of_metrics_json():
    fields = [re.findall(r'`(\w+)`', row[0]) for row in table('docs/evaluation.md', '| field')]
    inner = [row[0].startswith('·') for row in table('docs/evaluation.md', '| field')]
    top = {name for names, inside in zip(fields, inner) if not inside for name in names}
    assert top == returned(describe_run) | {'wise_ft_alpha', 'soup', 'inference'}
    assert returned(describe_set) <= {name for names, inside in zip(fields, inner) if inside for name in names}


def test_metrics():
    documented = {name for row in table('docs/evaluation.md', '| metric') for name in re.findall(r'`(\w+)`', row[0])}
    source = inspect.getsource(metrics)
    assert documented >= {'top1', 'top5', 'mean_per_class', 'nll', 'ece', 'zero_shot_percent', 'mce'}
    assert [name for name in documented if name not in source] == []


@pytest.mark.parametrize('name', ['docs/results.md', 'docs/results/ablations.md', 'docs/results/negative.md'])
def test_averages_of_results(name):
    """The OOD average of every row is the mean of its shifts, up to rounding."""
    checked = 0
    for header, rows in re.findall(r'^(\|.*OOD avg \|)\n\|[-:| ]+\|\n((?:\|.*\n)+)', PAGES[name], re.MULTILINE):
        columns = [cell.strip() for cell in header.strip('|').split('|')]
        shifts = [
            index
            for index, column in enumerate(columns)
            if column in ('v2', 'r', 'sketch', 'a', 'art_painting', 'cartoon')
        ]
        for row in rows.splitlines() if shifts else ():
            cells = [cell.strip() for cell in row.strip('|').split('|')]
            values = [number(cells[index]) for index in range(shifts[0], len(columns) - 1)]
            assert statistics.mean(values) == pytest.approx(number(cells[-1]), abs=0.11), row
            checked += 1
    assert checked > 8


def test_results_are_short():
    assert len(PAGES['docs/results.md'].splitlines()) <= 150
