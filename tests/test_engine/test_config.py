"""What Config.fromfile gives is what runs; options that change nothing are errors."""

import json
import random
import re
import subprocess
import sys
import traceback
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config

import mmcfmask  # noqa: F401
from mmcfmask.engine.config import load_config, read_config
from mmcfmask.errors import ConfigError, MissingFileError, UserError

ROOT = Path(__file__).parents[2]
OURS = sorted(str(path) for path in (ROOT / 'configs').rglob('*.py') if path.parent.name != '_base_')
THEIRS = sorted(
    str(path)
    for path in (Path(mmpretrain.__file__).parent / '.mim' / 'configs').rglob('*.py')
    if '_base_' not in path.parts and 'mmdet::' not in (text := path.read_text()) and 'mmseg::' not in text
)
IPU = next(path for path in THEIRS if path.endswith('vit-base-p16_4xb544-ipu_in1k.py'))  # with variables of many names
VARIABLES = """
data_root = 'data/x/'
pipeline = [dict(type='Resize', data_root=data_root), dict(type='Pack')]
images = dict(data_root=data_root, pipeline=pipeline, part=1)
train_dataloader = dict(dataset=images)
val_dataloader = dict(dataset=dict(images, part='held out'))
test_dataloader = dict(
    a=dict(dataset=dict(data_root=data_root, pipeline=pipeline)), b=dict(dataset=dict(data_root='y', pipeline=[])))
loader = dict(batch_size=2)
"""


@pytest.mark.parametrize('path', OURS)
def test_shipped_configs_run_as_they_are_read(path):
    assert load_config(path, {}).to_dict() == Config.fromfile(path).to_dict()


def test_configs_are_those_of_mmengine_alone():
    """Ours, which override no shared variable, and a sample of mmpretrain's are read as if mmcfmask was not there, but
    for the ``_delete_`` that mmengine leaves behind."""
    ours = [path for path in OURS if not re.search('^image_size =', Path(path).read_text(), re.MULTILINE)]
    paths = [*ours, IPU, *random.Random(0).sample(THEIRS, 40)]
    code = (
        'import json, sys\n'
        'from mmengine.config import Config\n'
        'texts = []\n'
        'for path in json.load(sys.stdin):\n'
        '    try:\n'
        '        texts.append(repr(Config.fromfile(path, import_custom_modules=False).to_dict()))\n'
        '    except Exception:\n'  # some of mmpretrain's are broken
        '        texts.append("None")\n'
        'print(json.dumps(texts))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], input=json.dumps(paths), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    def without_deletes(node):
        if isinstance(node, dict):
            return {key: without_deletes(value) for key, value in node.items() if key != '_delete_'}
        return type(node)(map(without_deletes, node)) if isinstance(node, (list, tuple)) else node

    alone = [without_deletes(eval(text, {'inf': float('inf')})) for text in json.loads(done.stdout.splitlines()[-1])]
    assert alone.count(None) <= 3
    for path, cfg in zip(paths, alone):
        assert cfg is None or read_config(path).to_dict() == cfg, path


def test_options_are_texts_or_values(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES)
    for options in (
        ['train_dataloader.batch_size=8', "work_dir='a'"],
        {'train_dataloader.batch_size': 8, 'work_dir': 'a'},
    ):
        cfg = load_config(str(path), options)
        assert cfg.train_dataloader.batch_size == 8 and cfg.work_dir == 'a'
    with pytest.raises(ConfigError, match="^--cfg-options: 'lr' is not key=value"):
        load_config(str(path), ['lr'])


def test_option_for_a_variable(tmp_path, capsys):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES)
    with pytest.raises(
        ConfigError,
        match="an override of the variable 'loader' would change nothing, since the config does not share it. Set the "
        'keys that were made from it instead$',
    ):
        load_config(str(path), {'loader.batch_size': 3})
    for name, keys in (
        ('images.part', 'Set train_dataloader.dataset instead'),
        ('data_root', 'Set train_dataloader.dataset.data_root, train_dataloader.dataset.pipeline.0.data_root, '),
    ):
        with pytest.raises(ConfigError, match=keys):
            load_config(str(path), {name: 3})
    path.write_text(VARIABLES + "shared = ('data_root', 'loader')")
    load_config(str(path), {'loader.batch_size': 3})  # a shared dict may be for other configs: a line says so
    assert 'loader is shared, but nothing in' in capsys.readouterr().err
    path.write_text(VARIABLES + "batch = 2\nshared = ('batch',)")
    with pytest.raises(ConfigError, match="'batch' would .*, since no key of this name holds its old value"):
        load_config(str(path), {'batch': 3})
    load_config(str(path), {'batch': 2})  # as it is


def test_option_that_nothing_reads(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES)
    mistakes = {
        'optim_wraper.optimizer.lr': 'optim_wrapper',
        'total_batchsize': 'total_batch_size',
        'dataroot': 'data_root',
        'batch_size': 'loader.batch_size',
    }
    for wrong, right in mistakes.items():
        name = wrong.partition('.')[0]
        with pytest.raises(
            ConfigError, match=f"config.py has no '{name}', and nothing would read it. Did you mean .*'{right}'"
        ):
            load_config(str(path), {wrong: 1})
    cfg = load_config(str(path), {'cache_dir': 'fast', 'work_dir': 'here', 'total_batch_size': 4})  # may be absent
    assert (cfg.cache_dir, cfg.work_dir, cfg.total_batch_size) == ('fast', 'here', 4)


@pytest.mark.parametrize(
    'shared, message',
    [
        ("('data_root')", r"shared='data_root' must be a tuple of names of variables, such as \('data_root',\)"),
        ('[1]', r'shared=\[1\] must be a tuple'),
        ("('data_rot',)", "shared names 'data_rot', which is no variable of it. Did you mean 'data_root'"),
        (
            "('train_dataloader',)",
            "shared names 'train_dataloader', which is no variable but a part of the run: share a",
        ),
        ("('images.part',)", "shared names 'images.part', but a dotted key can be shared only if it holds a dict"),
    ],
)
def test_what_cannot_be_shared(tmp_path, shared, message):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES + f'shared = {shared}')
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))
    path.write_text(VARIABLES)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path), [f'shared={shared}'])


def test_a_word_cannot_be_shared():
    with pytest.raises(ConfigError, match="--cfg-options: shared='foo' must be a tuple of names of variables"):
        load_config(str(ROOT / 'configs' / 'shapes' / 'ft.py'), ['shared=foo'])


PROBE = """
_base_ = './base.py'
model = dict(head=dict(class_weights=dict(
    type='linear_probe', dataset={{_base_.train_dataloader.dataset}}, held_out={{_base_.val_dataloader.dataset}})))
"""
GATE = """
_base_ = './base.py'
model = dict(knn_gate=dict(dataset={{_base_.train_dataloader.dataset}}, held_out={{_base_.val_dataloader.dataset}}))
"""


@pytest.mark.parametrize('text, part', [(PROBE, 'model.head.class_weights'), (GATE, 'model.knn_gate')])
def test_copies_of_the_training_images_are_not_left_behind(tmp_path, text, part):
    (tmp_path / 'base.py').write_text(VARIABLES + "shared = ('data_root', 'pipeline')")
    path = tmp_path / 'child.py'
    path.write_text(text)

    def read(**options):
        cfg = load_config(str(path), {key.replace('__', '.'): value for key, value in options.items()})
        for name in part.split('.'):
            cfg = cfg[name]
        return cfg

    with pytest.raises(
        ConfigError,
        match=f'^{part}.dataset held the images of train_dataloader.dataset, which --cfg-options changes: set '
        f'{part}.dataset.per_class {part}.dataset.part as well, or let the config share them: shared=',
    ):
        read(train_dataloader__dataset__per_class=60, train_dataloader__dataset__part=2)
    with pytest.raises(
        ConfigError, match=f'{part}.held_out held the images of val_dataloader.dataset.*{part}.held_out.p'
    ):
        read(val_dataloader__dataset__part=9)
    with pytest.raises(ConfigError, match=f'set {part}.dataset as well'):
        read(train_dataloader=dict(dataset=dict(part=3)))
    key = part.replace('.', '__')
    both = read(**{'train_dataloader__dataset__part': 3, f'{key}__dataset__part': 4})  # on purpose
    assert both.dataset.part == 4
    moved = read(data_root='/mine')
    assert moved.dataset.data_root == moved.held_out.data_root == '/mine'
    assert read(train_dataloader=None).dataset.part == 1
    if text is PROBE:
        assert read(train_dataloader__dataset__part=3, model__head__class_weights__type='prototype').dataset.part == 1


def test_delete_inside_delete(tmp_path):
    (tmp_path / 'base.py').write_text('test_dataloader = dict(a=dict(x=1))')
    (tmp_path / 'own.py').write_text(
        "_base_ = 'base.py'\ntest_dataloader = dict(\n"
        '    _delete_=True, b=dict(dataset=dict(_delete_=True, y=[dict(_delete_=True)])))'
    )
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert cfg.test_dataloader == dict(b=dict(dataset=dict(y=[{}])))


def test_removed_hook_of_old_configs():
    with pytest.raises(ConfigError, match=r"custom_hooks\[0\].type='PlainCheckpointHook' is no longer needed"):
        load_config(str(ROOT / 'configs' / 'shapes' / 'ft.py'), {'custom_hooks': [dict(type='PlainCheckpointHook')]})


def test_settings_of_the_runner_are_no_unknown_names():
    options = {
        'find_unused_parameters': True,
        'sync_bn': 'torch',
        'model_wrapper_cfg.static_graph': True,
        'tf32': True,
        'activation_checkpointing': ['backbone'],
        'compile': False,
    }
    cfg = load_config(str(ROOT / 'configs' / 'shapes' / 'cfmask.py'), options)
    assert cfg.find_unused_parameters and cfg.model_wrapper_cfg.static_graph and cfg.tf32


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the user; the current folder, where it lies, is a place of modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])

    def write(name, text):
        (tmp_path / f'{name}.py').write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.mark.parametrize('by_option', [False, True])
@pytest.mark.parametrize(
    'text, error',
    [
        ('x = undefined', NameError),
        ("{}['key']", KeyError),
        ('import no_such_library', ModuleNotFoundError),
        ('from os import nothing', ImportError),
        ('x = = 1', SyntaxError),
    ],
)
def test_a_module_that_fails_keeps_its_traceback(tmp_path, module, text, error, by_option):
    module('my_failing_part', f'# comment\n{text}')
    path = tmp_path / 'config.py'
    path.write_text('' if by_option else "custom_imports = dict(imports=['my_failing_part'])")
    options = {'custom_imports.imports': ['my_failing_part']} if by_option else {}
    with pytest.raises(error) as found:
        load_config(str(path), options)
    assert type(found.value) is error
    text = ''.join(traceback.format_exception(found.type, found.value, found.tb))
    assert 'my_failing_part.py", line 2' in text and 'Failed to import' not in text


def test_a_failing_module_that_the_config_itself_imports(tmp_path, module):
    module('my_failing_part', 'x = undefined')
    module('empty', '')
    for text in ('import my_failing_part', "_base_ = 'empty.py'\nimport my_failing_part"):  # either style of mmengine
        (tmp_path / 'config.py').write_text(text)
        with pytest.raises(NameError, match="^name 'undefined' is not defined"):
            read_config('config.py')
    (tmp_path / 'config.py').write_text("_base_ = 'empty.py'\nimport my_missing_part")
    with pytest.raises(ConfigError, match="config.py, line 2: ModuleNotFoundError: No module named 'my_missing_part'"):
        read_config('config.py')


@pytest.mark.parametrize('name, missing', [('my_missing_part', 'my_missing_part'), ('my_package.part', 'my_package')])
def test_a_module_that_does_not_exist(tmp_path, module, name, missing):
    path = tmp_path / 'config.py'
    path.write_text(f'custom_imports = dict(imports=[{name!r}])')
    message = f"custom_imports needs the module '{missing}', which does not exist"
    with pytest.raises(ConfigError, match=f'config.py: {message}'):
        load_config(str(path))
    path.write_text('')
    with pytest.raises(ConfigError, match=f'--cfg-options: {message}'):
        load_config(str(path), {'custom_imports.imports': [name]})


def test_bases_that_set_the_same_names(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("_base_ = ['mmcfmask::_base_/recipe.py', 'mmcfmask::_base_/shapes.py']")  # as in version 0.1.0
    with pytest.raises(ConfigError, match=r"set _base_ = \['mmcfmask::_base_/shapes.py'\]$"):
        load_config(str(path))
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('lr = 1')
    path.write_text("_base_ = ['a.py', 'b.py']")
    with pytest.raises(ConfigError, match="config.py: two files in _base_ set the same names, .*: 'lr'$"):
        load_config(str(path))


def test_configs_of_the_package_that_do_not_exist(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("_base_ = 'mmcfmask::variants/object_single_vitb16.py'")  # a config of version 0.1.0
    with pytest.raises(UserError, match="object_single_vitb16.py', which is now mmcfmask::cfmask_vitb16.py$"):
        load_config(str(path))
    path.write_text("_base_ = 'mmcfmask::variants/none.py'")
    with pytest.raises(UserError, match='none.py.*, which does not exist; there are: .*random_multi') as found:
        load_config(str(path))
    assert 'cannot be found' not in str(found.value)


def test_near_names_of_a_config_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('cfmask.py', 'studies.yaml', 'notes.txt'):
        Path(name).write_text('a = 1')
    for wrong, said in ('cfmsk.py', "'cfmsk.py'. Did you mean cfmask.py[?]$"), ('notes.py', "'notes.py'$"):
        with pytest.raises(MissingFileError, match=said):
            load_config(wrong)
    with pytest.raises(MissingFileError, match="'x/cfmask.py'$"):
        load_config('x/cfmask.py')


def test_configs_of_a_package():
    assert (
        load_config('mmcfmask::shapes/ft.py').pretty_text == load_config(str(ROOT / 'configs/shapes/ft.py')).pretty_text
    )
    with pytest.raises(MissingFileError, match=r"there is no config '.*ft_.py'. Did you mean .*ft.py"):
        load_config('mmcfmask::shapes/ft_.py')
    for name in ('no_such_package::a.py', 'a/b::c.py', '::ft.py'):
        with pytest.raises(MissingFileError, match='names a file of the package .* not installed'):
            load_config(name)
