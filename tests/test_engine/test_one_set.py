import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from short_runs import ROOT, config

from mmcfmask.engine.checks import check_testing
from mmcfmask.engine.config import load_config
from mmcfmask.engine.one_set import keep_one_set
from mmcfmask.errors import ConfigError

CHILD = "_base_ = 'mmcfmask::shapes/ft.py'\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / 'my_config.py').write_text(text)
        return str(tmp_path / 'my_config.py')

    return write


def test_the_test_of_one_set(write, tmp_path):
    whole = Config.fromfile(write(CHILD))
    for name, metric in dict(sketch='ShiftAccuracy', groups='GroupAccuracy').items():
        cfg = Config.fromfile(write(f'{CHILD}one_test_set = {name!r}'))
        assert cfg.test_dataloader == whole.test_dataloader[name] and cfg.test_cfg == dict(type='OneSetTestLoop')
        assert cfg.test_evaluator == [dict(type=metric, prefix=name)]
        changed = {key for key in {*cfg, *whole} if cfg.get(key) != whole.get(key)}
        assert changed == {'test_dataloader', 'test_evaluator', 'test_cfg'}
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'text, message',
    [
        ("one_test_set = ['r', 'a']", "one_test_set=['r', 'a'] is none of the test sets"),
        ("one_test_set = 'skech'", "one_test_set='skech' is none of the test sets. Did you mean 'sketch'"),
        (
            "one_test_set = 'r'\ntest_cfg = dict(_delete_=True)",
            "one_test_set='r' chooses one of the named sets of a MultiSet",
        ),
    ],
)
def test_mistakes(text, message, write):
    with pytest.raises(ConfigError) as error:
        Config.fromfile(write(CHILD + text))
    assert message in str(error.value)


def test_the_tools_of_this_package_say_what_to_do(write):
    for text, options in ((f"{CHILD}one_test_set = 'r'", ()), (CHILD, ['one_test_set=r'])):
        with pytest.raises(ConfigError, match='by --shifts here'):
            check_testing(load_config(write(text), options))


def test_a_config_that_imports_the_package_is_read_as_by_the_package(write):
    """The import comes while the file is read: neither its one_test_set nor its shared variables are lost."""
    path = write(
        "_base_ = __import__('mmcfmask') and 'mmcfmask::cfmask_vitb16.py'\n"
        "data_root = '/mine'\none_test_set = 'imagenet-r'\n"
    )
    code = f'from mmengine.config import Config\nprint(Config.fromfile({path!r}).pretty_text)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cfg = Config.fromstring(done.stdout, '.py')
    assert cfg.test_dataloader.dataset.type == 'ImageNetRDataset' and cfg.test_cfg.type == 'OneSetTestLoop'
    assert cfg.test_dataloader.dataset.data_root == cfg.train_dataloader.dataset.data_root == '/mine'


def test_metrics_are_those_of_the_whole_test(tiny_pretrained, tmp_path):
    cfg = config(tmp_path, tiny_pretrained, 'ft')
    whole = Config.fromfile(ROOT / 'configs' / 'shapes' / 'ft.py')
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.val_dataloader = cfg.val_cfg = None
    cfg.val_evaluator = cfg.param_scheduler = None
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = (
        whole[f'test_{part}'] for part in ('dataloader', 'evaluator', 'cfg')
    )
    for loader in cfg.test_dataloader.values():
        loader.dataset.update(size=20, pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')])
    cfg.test_cfg.shifts = ['r']
    every = Runner.from_cfg(cfg).test()
    cfg.one_test_set, cfg.experiment_name = 'r', cfg.experiment_name + '_one'
    keep_one_set(cfg)
    assert Runner.from_cfg(cfg).test() == {key: every[key] for key in every if key.startswith('r/')}
