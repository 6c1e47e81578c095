"""An override of a shared variable reaches the keys of its name that hold its old value, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmcfmask.engine import shared
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError

BASE = """
shared = ('data_root', 'pipeline')
data_root = 'data/x/'
pipeline = [dict(type='Resize', data_root=data_root), dict(type='Pack')]
my_hooks = []
param_scheduler = []
images = dict(data_root=data_root, pipeline=pipeline, part=1)
train_dataloader = dict(dataset=images)
test_dataloader = dict(
    a=dict(dataset=dict(data_root=data_root, pipeline=pipeline)),
    b=dict(dataset=dict(data_root='y', pipeline=[], root=data_root)))
more = [dict(datasets=(dict(data_root=data_root),))]
"""
REACHED = (
    'train_dataloader.dataset.data_root, train_dataloader.dataset.pipeline.0.data_root, '
    'test_dataloader.a.dataset.data_root, test_dataloader.a.dataset.pipeline.0.data_root'
)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    write('base.py', BASE)
    return write


@pytest.fixture
def lines(capsys):
    shared.log_once.cache_clear()
    return lambda: capsys.readouterr().err.splitlines()


def check_moved(cfg, root='/mine'):
    pipeline = [dict(type='Resize', data_root=root), dict(type='Pack')]
    assert cfg.data_root == root and cfg.pipeline == pipeline
    assert cfg.train_dataloader.dataset == dict(data_root=root, pipeline=pipeline, part=1)
    assert cfg.test_dataloader.a.dataset == dict(data_root=root, pipeline=pipeline)
    assert cfg.test_dataloader.b.dataset == dict(data_root='y', pipeline=[], root='data/x/')  # another value or name
    assert cfg.more == [dict(datasets=(dict(data_root=root),))]


def test_override_by_a_child(write, lines):
    path = write('child.py', "_base_ = 'base.py'\ndata_root = '/mine'")
    check_moved(Config.fromfile(path))
    assert load_config(path).to_dict() == Config.fromfile(path).to_dict()
    assert lines() == [f'data_root is shared: its override by {path} also sets {REACHED}']  # once is enough


@pytest.mark.parametrize('options', [{'data_root': '/mine'}, ['data_root=/mine']])
def test_override_by_an_option(write, lines, options):
    check_moved(load_config(write('child.py', "_base_ = 'base.py'"), options))
    assert lines() == [f'data_root is shared: its override by --cfg-options also sets {REACHED}']
    check_moved(load_config(write('own.py', "_base_ = 'base.py'\ndata_root = '/theirs'"), options))


def test_an_override_that_reaches_only_other_variables_is_refused(write):
    """It would change nothing that runs."""
    write('base.py', "shared = ('data_root',)\ndata_root = 'a'\nimages = dict(data_root=data_root)")
    with pytest.raises(ConfigError, match="an override of the variable 'data_root' would change nothing"):
        load_config(write('child.py', "_base_ = 'base.py'"), {'data_root': 'b'})


def test_only_the_first_process_logs(write, lines, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    check_moved(load_config(write('child.py', "_base_ = 'base.py'"), {'data_root': '/mine'}))
    assert not lines()


def test_a_variable_of_this_name_in_other_configs(write):
    for value in ("dict(data_root='b')", "'data_root'", '[1, None]', 'None'):
        write('other.py', f"shared = {value}\ndata_root = 'a'\nimages = dict(data_root='a')")
        cfg = Config.fromfile(write('child.py', "_base_ = 'other.py'\ndata_root = 'b'"))
        assert cfg.images.data_root == 'a'


def test_every_level_may_override(write):
    write(
        'middle.py', "_base_ = './base.py'\ndata_root = '/middle'\npipeline = [dict(type='Mine', data_root='/middle')]"
    )
    child = write('child.py', "_base_ = ['middle.py']\ndata_root = '/mine'")
    cfg = Config.fromfile(child)
    mine = dict(data_root='/mine', pipeline=[dict(type='Mine', data_root='/mine')])
    assert cfg.train_dataloader.dataset == dict(**mine, part=1) and cfg.test_dataloader.a.dataset == mine
    cfg = Config.fromfile(write('own.py', "_base_ = 'middle.py'\nimages = dict(part=2)\npipeline = []"))
    assert cfg.images == dict(data_root='/middle', pipeline=[], part=2)
    assert cfg.train_dataloader.dataset == dict(data_root='/middle', pipeline=[], part=1)


def test_overrides_of_two_at_once(write):
    cfg = Config.fromfile(
        write('child.py', "_base_ = 'base.py'\ndata_root = '/mine'\npipeline = [dict(type='Own', data_root='data/x/')]")
    )
    assert cfg.train_dataloader.dataset.pipeline == [dict(type='Own', data_root='/mine')]
    cfg = load_config(write('same.py', "_base_ = 'base.py'"), {'pipeline.1.type': 'Keep', 'data_root': '/mine'})
    pipeline = [dict(type='Resize', data_root='/mine'), dict(type='Keep')]
    assert cfg.pipeline == cfg.images.pipeline == cfg.test_dataloader.a.dataset.pipeline == pipeline


def test_nothing_else_is_touched(write):
    """Variables that are not shared, though other parts of the config equal them."""
    cfg = Config.fromfile(write('child.py', "_base_ = 'base.py'\nmy_hooks = [dict(type='EMAHook')]"))
    base = Config.fromfile(write('base.py', BASE)).to_dict()
    assert cfg.to_dict() == {**base, 'my_hooks': [dict(type='EMAHook')]}


def test_what_a_child_writes_itself_stays(write):
    cfg = Config.fromfile(
        write(
            'child.py',
            """
_base_ = 'base.py'
data_root = '/mine'
train_dataloader = dict(dataset=dict(_delete_=True, data_root='/other', pipeline={{_base_.pipeline}}))
test_dataloader = dict(_delete_=True, a=dict(dataset={{_base_.test_dataloader.a.dataset}}))
""",
        )
    )
    pipeline = [dict(type='Resize', data_root='/mine'), dict(type='Pack')]
    assert cfg.train_dataloader.dataset == dict(data_root='/other', pipeline=pipeline)
    assert cfg.test_dataloader == dict(a=dict(dataset=dict(data_root='/mine', pipeline=pipeline)))


PROBE = """
_base_ = 'base.py'
shared = (*_base_.shared, 'train_dataloader.dataset', 'val_dataloader.dataset')
val_dataloader = dict(dataset=dict(type='ShapesDataset', split='val'))
model = dict(head=dict(class_weights=dict(
    type='linear_probe', dataset={{_base_.train_dataloader.dataset}}, held_out=val_dataloader['dataset'])))
"""


def test_a_part_of_the_config_may_be_shared(write, lines):
    """A linear probe follows the training images, whoever changes them."""
    path = write('probe.py', PROBE)
    options = {'train_dataloader.dataset.part': 2, 'val_dataloader.dataset.size': 9, 'data_root': '/mine'}
    cfg = load_config(path, options)
    probe = cfg.model.head.class_weights
    assert probe.dataset == cfg.train_dataloader.dataset and probe.held_out == cfg.val_dataloader.dataset
    assert (probe.dataset.part, probe.dataset.data_root, probe.held_out.size) == (2, '/mine', 9)
    assert lines()[0] == (
        'train_dataloader.dataset is shared: its override by --cfg-options also sets model.head.class_weights.dataset'
    )
    assert cfg.images.part == 1 and cfg.test_dataloader.b.dataset.pipeline == []
    child = "_base_ = 'probe.py'\ntrain_dataloader = dict(dataset=dict(_delete_=True, type='ShapesDataset'))"
    cfg = Config.fromfile(write('child.py', child))
    assert cfg.model.head.class_weights.dataset == cfg.train_dataloader.dataset == dict(type='ShapesDataset')
    cfg = load_config(path, {'train_dataloader.dataset.part': 2, 'model.head.class_weights.dataset.part': 3})
    assert cfg.model.head.class_weights.dataset.part == 3  # its own
    cfg = load_config(path, {'train_dataloader': None})
    assert cfg.model.head.class_weights.dataset.part == 1


@pytest.mark.parametrize('name', ['shapes/lpft', 'pacs/lpft_vitb16', 'baselines/lpft_vitb16'])
def test_shipped_probes_follow_the_training_images(name):
    key = 'size' if 'shapes' in name else 'per_class'
    cfg = load_config(f'configs/{name}.py', {f'train_dataloader.dataset.{key}': 60})
    assert cfg.model.head.class_weights.dataset == cfg.train_dataloader.dataset
    assert cfg.model.head.class_weights.dataset[key] == 60


def test_bases_may_be_several_and_yaml(write):
    write('loop.yaml', 'test_cfg:\n  data_root: data/x/\n')
    cfg = Config.fromfile(write('child.yml', '_base_: [base.py, loop.yaml]\ndata_root: /mine\n'))
    assert cfg.test_cfg.data_root == cfg.train_dataloader.dataset.data_root == '/mine'
    write('yaml.yaml', 'shared: [data_root]\ndata_root: a\ntest_dataloader: {dataset: {data_root: a}}\n')
    assert (
        Config.fromfile(write('own.py', "_base_ = 'yaml.yaml'\ndata_root = 'b'")).test_dataloader.dataset.data_root
        == 'b'
    )


def test_a_dumped_config_is_the_same_config(write, tmp_path):
    cfg = Config.fromfile(write('child.py', "_base_ = 'base.py'\ndata_root = '/mine'"))
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict() and again.shared == ('data_root', 'pipeline')
    check_moved(load_config(str(tmp_path / 'dumped.py'), {'data_root': '/moved'}), '/moved')
    assert "data_root = '/mine'" in cfg.text and 'data/x/' in cfg.text  # the files, as they were written


def test_programs_of_mmpretrain_see_the_same_config(write):
    """They call Config.fromfile; the import of mmcfmask is in the config, or the user's."""
    path = write('child.py', "_base_ = 'base.py'\ndata_root = '/mine'")
    code = f'import mmcfmask\nfrom mmengine.config import Config\nprint(Config.fromfile({path!r}).pretty_text)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    check_moved(Config.fromstring(done.stdout, '.py'))
    assert 'data_root is shared: its override by' in done.stderr


def test_a_child_may_share_a_variable_itself(write, lines):
    write('plain.py', BASE.replace("shared = ('data_root', 'pipeline')", ''))
    check_moved(Config.fromfile(write('child.py', "_base_ = 'plain.py'\nshared = ('data_root',)\ndata_root = '/mine'")))
    assert [line.partition(' also')[0] for line in lines()] == [
        f'data_root is shared: its override by {write("child.py", "")}'
    ]
    cfg = load_config(write('same.py', "_base_ = 'plain.py'"), ["shared=('data_root',)", 'data_root=/mine'])
    check_moved(cfg)


def test_a_child_is_warned_of_copies_that_it_leaves_behind(write, lines):
    write('plain.py', BASE.replace("shared = ('data_root', 'pipeline')", ''))
    child = write('child.py', "_base_ = 'plain.py'\ndata_root = '/mine'")
    assert Config.fromfile(child).train_dataloader.dataset.data_root == 'data/x/'
    keys = (
        'train_dataloader.dataset.data_root, train_dataloader.dataset.pipeline.0.data_root, '
        'test_dataloader.a.dataset.data_root, test_dataloader.a.dataset.pipeline.0.data_root'
    )
    assert lines() == [
        f'Warning: {child} sets data_root, but the old value stays in {keys}: '
        "set them too, or add 'data_root' to shared"
    ]
    rest = "train_dataloader = dict(dataset=dict(data_root='/mine', pipeline=[]))\ntest_dataloader = None"
    for path in (
        write('grandchild.py', f"_base_ = 'child.py'\n{rest}"),  # which sets the rest
        write('complete.py', f"_base_ = 'plain.py'\ndata_root = '/mine'\n{rest}"),
        write('unused.py', "_base_ = 'plain.py'\nmore = []\nmy_hooks = [1]\nimages = None"),  # read by nothing
        write('shared.py', "_base_ = 'base.py'\ndata_root = '/mine'"),
    ):
        shared.log_once.cache_clear()
        Config.fromfile(path)
        assert not any('Warning' in line for line in lines())


def test_shipped_configs_leave_no_copies_behind(lines):
    for path in sorted(Path('configs').rglob('*.py')):
        Config.fromfile(path)
    assert not any('Warning' in line for line in lines())


def test_values_of_another_type_are_no_copies(write):
    write(
        'flags.py',
        "shared = ('flag',)\nflag = 0\nmodel = dict(a=dict(flag=flag), b=dict(flag=False), c=dict(flag=0.0))",
    )
    cfg = Config.fromfile(write('child.py', "_base_ = 'flags.py'\nflag = 1"))
    assert repr([cfg.model[name].flag for name in 'abc']) == '[1, False, 0.0]'
    cfg = Config.fromfile(write('child.py', "_base_ = 'flags.py'\nflag = False"))
    assert cfg.model.a.flag is False


def test_configs_of_the_new_style(write, tmp_path, monkeypatch):
    """Their variables are shared for options only: a child is Python that has imported the copies."""
    monkeypatch.chdir(tmp_path)
    write('new.py', 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n')
    check_moved(load_config('new.py', {'data_root': '/mine'}))
