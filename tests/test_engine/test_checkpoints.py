"""When checkpoints are written, which one is found again, and which are refused."""

import logging
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from short_runs import config, train

import mmcfmask.compat as compat
from mmcfmask.engine import checkpoint_hook, checkpoints
from mmcfmask.engine.checkpoint_hook import CheckpointHook
from mmcfmask.engine.checkpoints import (
    best_checkpoint,
    check_checkpoint,
    check_same_tower,
    check_schedules,
    check_state_dict,
    find_resumable,
    inherited_meta,
)
from mmcfmask.errors import ConfigError, MissingFileError, StorageError


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_pretrained):
    """The work dir of a run of 2 epochs; not to be changed."""
    work_dir = tmp_path_factory.mktemp('trained')
    train(config(work_dir, tiny_pretrained, **{'optim_wrapper.optimizer.lr': 1e-3}))
    return work_dir


@pytest.fixture
def work_dir(trained, tmp_path):
    """A copy of it, under another name."""
    return Path(shutil.copytree(trained, tmp_path / 'moved'))


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoints, 'print_log', lambda text, *args, level=logging.INFO: said.append((level, text)))
    return said


def load(path):
    return torch.load(path, weights_only=True)


def change(path, **parts):
    torch.save({**load(path), **parts}, path)


def flip(path):
    """Change one bit of the largest tensor (between tensors there is padding, which nothing reads)."""
    with zipfile.ZipFile(path) as archive:
        tensor = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    start = tensor.header_offset
    name, extra = (int.from_bytes(data[start + at : start + at + 2], 'little') for at in (26, 28))
    data[start + 30 + name + extra + tensor.file_size // 2] ^= 4
    path.write_bytes(data)


def test_the_order_of_writing(tmp_path, tiny_pretrained, monkeypatch):
    """A checkpoint, then its name, then the older one goes; the best one is written once."""
    order = []
    write_tensors, write_text, remove = compat.write_tensors, checkpoint_hook.write_text, CheckpointHook._remove

    def record(name, function):

        def wrapped(*args):
            order.append((name, Path(args[1 if name == 'remove' else 0]).name))
            return function(*args)

        return wrapped

    monkeypatch.setattr(compat, 'write_tensors', record('write', write_tensors))
    monkeypatch.setattr(checkpoint_hook, 'write_text', record('write', write_text))
    monkeypatch.setattr(CheckpointHook, '_remove', record('remove', remove))
    train(config(tmp_path, tiny_pretrained, **{'default_hooks.checkpoint.max_keep_ckpts': 1}))
    best = load(tmp_path / 'best.pth')['meta']
    first = [('write', 'epoch_1.pth'), ('write', 'last_checkpoint'), ('write', 'best.pth')]
    second = [('write', 'epoch_2.pth'), ('write', 'last_checkpoint'), ('remove', 'epoch_1.pth')]
    assert order == first + second + [('write', 'best.pth')] * (best['epoch'] == 2)
    assert (
        best['iter'] == 5 * best['epoch']
        and best['best']['metric'] == 'accuracy/top1'
        and 0 <= best['best']['value'] <= 100
    )
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best.pth', 'epoch_2.pth']


def test_best_of_several_metrics(tmp_path, tiny_pretrained):
    train(
        config(
            tmp_path,
            tiny_pretrained,
            **{
                'train_cfg.max_epochs': 1,
                'default_hooks.checkpoint.save_best': ['accuracy/top1', 'accuracy/nll'],
                'default_hooks.checkpoint.rule': ['greater', 'less'],
            },
        )
    )
    assert sorted(path.name for path in tmp_path.glob('best*')) == ['best_accuracy_nll.pth', 'best_accuracy_top1.pth']
    assert load(tmp_path / 'best_accuracy_nll.pth')['meta']['best']['metric'] == 'accuracy/nll'


def test_two_hooks_that_choose_are_refused(tmp_path, tiny_pretrained):
    cfg = config(tmp_path, tiny_pretrained)
    cfg.custom_hooks.append(dict(type='CheckpointHook', interval=1, save_best='accuracy/nll', rule='less'))
    with pytest.raises(ConfigError, match='two CheckpointHooks have save_best'):
        train(cfg)


def test_newest_whole_checkpoint_is_resumed(work_dir, said):
    assert (
        find_resumable(work_dir) == str(work_dir / 'epoch_2.pth') and not said
    )  # last_checkpoint names the folder of before
    shutil.copy(work_dir / 'epoch_2.pth', work_dir / 'epoch_9.pth')  # of another run
    flip(work_dir / 'epoch_2.pth')
    assert find_resumable(work_dir) == str(work_dir / 'epoch_1.pth')
    ((level, text),) = said
    assert level == logging.WARNING and "moved/epoch_2.pth' is damaged: the checksum" in text
    assert f'resuming from {work_dir / "epoch_1.pth"}, the newest whole checkpoint' in text
    (work_dir / 'epoch_2.pth').write_bytes((work_dir / 'epoch_2.pth').read_bytes()[:5000])  # cut off
    assert find_resumable(work_dir) == str(work_dir / 'epoch_1.pth')
    (work_dir / 'epoch_2.pth').unlink()
    (work_dir / 'epoch_9.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert find_resumable(work_dir) == str(work_dir / 'epoch_1.pth') and 'is missing: resuming from' in said[-1][1]
    for text in ('', None):  # version 0.1 could be killed between emptying and writing it
        (work_dir / 'last_checkpoint').write_text(text) if text is not None else (work_dir / 'last_checkpoint').unlink()
        assert (
            find_resumable(work_dir) == str(work_dir / 'epoch_1.pth') and 'is empty or missing: resuming' in said[-1][1]
        )
    flip(work_dir / 'epoch_1.pth')
    with pytest.raises(
        StorageError,
        match='epoch_1.pth. is damaged.*: there is no other checkpoint in .* To start again, delete the files',
    ):
        find_resumable(work_dir)
    (work_dir / 'epoch_1.pth').unlink()
    assert find_resumable(work_dir) is None  # best.pth has no training state
    assert find_resumable(work_dir / 'new') is None


def test_moved_run_goes_on(work_dir, trained, tiny_pretrained):
    before = sorted(trained.iterdir())
    cfg = config(
        work_dir,
        tiny_pretrained,
        resume=True,
        load_from=find_resumable(work_dir),
        **{'optim_wrapper.optimizer.lr': 1e-3, 'train_cfg.max_epochs': 3},
    )
    train(cfg)
    hub = load(work_dir / 'epoch_3.pth')['message_hub']['runtime_info']
    assert hub['best_ckpt'] == str(work_dir / 'best.pth') and hub['last_ckpt'] == str(work_dir / 'epoch_3.pth')
    assert (work_dir / 'last_checkpoint').read_text() == hub['last_ckpt']
    assert sorted(trained.iterdir()) == before


def never_better(path):
    """Let no later score beat that of a checkpoint."""
    state = load(path)
    state['message_hub']['runtime_info'].update(best_score=1000.0, best_ckpt=str(path.with_name('best.pth')))
    change(path, message_hub=state['message_hub'])
    best = load(path.with_name('best.pth'))
    change(path.with_name('best.pth'), meta={**best['meta'], 'best': dict(metric='accuracy/top1', value=1000.0)})


@pytest.mark.parametrize('there', [True, False])
def test_best_of_a_run_that_began_elsewhere_is_copied(work_dir, tmp_path, tiny_pretrained, there):
    never_better(work_dir / 'epoch_2.pth')
    best = work_dir / 'best.pth'
    expected = best.read_bytes()
    if not there:
        best.unlink()
    (tmp_path / 'second').mkdir()
    (tmp_path / 'second' / 'best.pth').write_text("another run's")
    cfg = config(
        tmp_path / 'second',
        tiny_pretrained,
        resume=True,
        load_from=str(work_dir / 'epoch_2.pth'),
        **{'optim_wrapper.optimizer.lr': 1e-3, 'train_cfg.max_epochs': 3},
    )
    train(cfg)
    assert ((tmp_path / 'second' / 'best.pth').read_bytes() == expected) == there  # or it is of the third epoch
    assert load(tmp_path / 'second' / 'best.pth')['meta']['best']['value'] <= (1000 if there else 100)


def test_best_checkpoint_of_version_0_1(work_dir, tiny_pretrained):
    """It counts, and goes when there is a better one."""
    old = work_dir / 'best_accuracy_top1_epoch_1.pth'
    (work_dir / 'best.pth').rename(old)
    hub = load(work_dir / 'epoch_2.pth')['message_hub']
    for score, left in ((1000.0, [old.name]), (-1.0, ['best.pth'])):
        hub['runtime_info'].update(best_score=score, best_ckpt=f'elsewhere/{old.name}')
        change(work_dir / 'epoch_2.pth', message_hub=hub)
        assert best_checkpoint(work_dir) == old
        train(
            config(
                work_dir,
                tiny_pretrained,
                resume=True,
                load_from=str(work_dir / 'epoch_2.pth'),
                **{'optim_wrapper.optimizer.lr': 1e-3, 'train_cfg.max_epochs': 3},
            )
        )
        assert [path.name for path in work_dir.glob('best*')] == left
    assert best_checkpoint(work_dir) == work_dir / 'best.pth' and best_checkpoint(work_dir / 'new') is None


@pytest.mark.parametrize(
    'value, message',
    [
        (torch.tensor([1.0, float('nan')]), 'weight holds numbers that are not finite'),
        (torch.tensor([1.0, -float('inf')]).half(), 'weight holds numbers that are not finite'),
        (torch.ones(2, device='meta'), 'weight has a shape but no numbers'),
        (torch.ones(2).to_sparse(), 'weight is a sparse tensor'),
        (torch.ones(2, dtype=torch.complex64), 'weight is a complex tensor'),
        (3, 'must hold named tensors'),
        (torch.ones(3), r'1 of another shape: weight \(3,\) instead of \(2,\)'),
        (torch.ones(2, dtype=torch.int64), '1 of another kind: weight int64 instead of float32'),
    ],
)
def test_tensors_that_cannot_be_weights(tmp_path, value, message):
    torch.save(dict(state_dict=dict(weight=value)), tmp_path / 'a.pth')
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match=f'a.pth.*{message}'):
        check_state_dict(model, check_checkpoint(str(tmp_path / 'a.pth')), str(tmp_path / 'a.pth'))


@pytest.mark.parametrize(
    'meta, message',
    [
        (dict(seed='x'), r'meta\["seed"\] = .x. is not the seed'),
        (dict(seed=-1), 'is not the seed of a run'),
        (dict(dataset_meta=5), r'meta\["dataset_meta"\] is a int, not a dict'),
        (dict(dataset_meta=dict(classes=5)), r"\['classes'\] is not a list of names"),
        (dict(dataset_meta=dict(folders='cat')), r"\['folders'\] is not a list of names"),
    ],
)
def test_what_a_checkpoint_says_of_its_training(tmp_path, meta, message):
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), meta=meta), path)
    with pytest.raises(ConfigError, match=f'a.pth.*{message}'):
        check_checkpoint(path)
    for good in (
        {},
        dict(seed=None, dataset_meta=None),
        dict(seed=3, dataset_meta=dict(classes=('cat', 'dog'), folders=None)),
    ):
        torch.save(dict(state_dict=dict(weight=torch.ones(2)), meta=good), path)
        check_checkpoint(path)


def test_images_normalised_as_in_training(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoints, 'print_log', lambda text, *args, **kwargs: said.append(text))
    model = dict(
        backbone=dict(type='VisionTransformer', arch='b'), data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[1, 1, 1])
    )
    checkpoint = dict(meta=dict(cfg=Config(dict(model=model)).pretty_text))
    check_same_tower(
        dict(model, data_preprocessor=dict(mean=(1.0, 2.0, 3.0001), std=[1.0, 1.0, 1.0])), checkpoint, 'a.pth'
    )
    check_same_tower(dict(model, data_preprocessor=None), checkpoint, 'a.pth')
    assert not said
    check_same_tower(dict(model, data_preprocessor=dict(mean=[0.0, 2.0, 3.0])), checkpoint, 'a.pth')
    assert said == [
        'a.pth was trained on images normalised by model.data_preprocessor.mean = [1.0, 2.0, 3.0], but now it is '
        '[0.0, 2.0, 3.0]'
    ]
    said.clear()
    siglip = dict(backbone=dict(type='OpenCLIPBackbone', model_name='ViT-B-16-SigLIP2'))
    words = dict(siglip, data_preprocessor=dict(mean='pretrained', std='pretrained'))
    checkpoint = dict(meta=dict(cfg=Config(dict(model=words)).pretty_text))
    check_same_tower(dict(siglip, data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3)), checkpoint, 'a.pth')
    assert not said
    check_same_tower(dict(siglip, data_preprocessor=dict(mean=[120.0] * 3)), checkpoint, 'a.pth')
    assert 'mean = [127.5, 127.5, 127.5], but now it is [120.0, 120.0, 120.0]' in said[0]


def test_names_of_a_wrapped_model_and_old_formats(tmp_path):
    torch.save(
        dict(state_dict={'module.weight': torch.ones(2)}), tmp_path / 'a.pth', _use_new_zipfile_serialization=False
    )
    assert list(check_checkpoint(str(tmp_path / 'a.pth'))['state_dict']) == ['weight']
    with pytest.raises(MissingFileError, match='is a folder: give the checkpoint in it'):
        check_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(meta=dict(epoch=1, iter=-5)), r"meta\['iter'\] = -5"),
        (dict(meta=dict(epoch='1', iter=5)), r"meta\['epoch'\] = '1'"),
        (dict(meta=dict(epoch=1, iter=5)), 'has no config'),
        (dict(meta=3), 'its "meta" is a int, not a dict'),
        (dict(optimizer=[]), 'its training state is not'),
        (dict(optimizer={}), 'lacks the state of the optimizer'),
        (dict(optimizer=dict(state={}, param_groups=[dict(betas=(0.9, 0.999))])), 'lacks the state of the optimizer'),
        (
            dict(optimizer=dict(state={0: dict(exp_avg=torch.tensor([float('nan')]))}, param_groups=[])),
            'optimizer.state.0.exp_avg holds numbers',
        ),
    ],
)
def test_training_states_that_cannot_be_resumed(tmp_path, trained, change, message):
    path = tmp_path / 'epoch_2.pth'
    torch.save({**load(trained / 'epoch_2.pth'), **change}, path)
    with pytest.raises(ConfigError, match=f'epoch_2.pth.*{message}'):
        check_checkpoint(str(path), resume=True)


def test_schedules_must_be_there(trained, tiny_pretrained):
    cfg, checkpoint = config(trained, tiny_pretrained), check_checkpoint(str(trained / 'epoch_2.pth'), resume=True)
    check_schedules(cfg, checkpoint, 'a.pth')
    checkpoint['param_schedulers'][0]['last_step'] = -3
    with pytest.raises(ConfigError, match='a.pth: a schedule cannot resume at step -3'):
        check_schedules(cfg, checkpoint, 'a.pth')
    checkpoint.pop('param_schedulers')
    with pytest.raises(ConfigError, match='a.pth holds the state of 0 schedules, but the config has 1'):
        check_schedules(cfg, checkpoint, 'a.pth')
    cfg.param_scheduler = None
    check_schedules(cfg, checkpoint, 'a.pth')


@pytest.mark.parametrize(
    'before, now, same',
    [
        (dict(model_name='tiny-vit'), dict(model_name='tiny-vit'), True),
        (dict(model_name='tiny-vit'), dict(model_name='tiny-vit-quickgelu'), False),
        (dict(model_name='tiny-vit'), dict(model_name='tiny-vit-wide'), False),
        (
            dict(model_name='ViT-B-16', pretrained='openai'),
            dict(model_name='ViT-B-16-quickgelu', pretrained='clip.pt'),
            True,
        ),
        (dict(model_name='ViT-B-16', pretrained='openai'), dict(model_name='ViT-B-16', pretrained='clip.pt'), False),
        (
            dict(model_name='ViT-B-16', pretrained='laion2b_s34b_b88k'),
            dict(model_name='ViT-B-16', pretrained=None, frozen=True),
            True,
        ),
        (
            dict(arch='b', layer_cfgs=dict(act_cfg=dict(type='QuickGELU'))),
            dict(arch='b', layer_cfgs=dict(act_cfg=dict(type='GELU'))),
            False,
        ),
    ],
)
def test_other_towers_and_activations(before, now, same):
    cfg = Config(dict(model=dict(backbone=dict(type='OpenCLIPBackbone', **before))))
    checkpoint = dict(meta=dict(cfg=cfg.pretty_text))
    if same:
        check_same_tower(dict(backbone=now), checkpoint, 'a.pth')
    else:
        with pytest.raises(
            ConfigError, match='a.pth was trained with model.backbone.* computes something else from the same weights'
        ):
            check_same_tower(dict(backbone=now), checkpoint, 'a.pth')
    check_same_tower(dict(backbone=now), dict(meta={}), 'a.pth')  # one that does not say
    assert inherited_meta(dict(meta=dict(cfg='x', time='now', dataset_meta={}))) == dict(cfg='x', dataset_meta={})


def test_weights_of_something_else_are_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / 'release.pt'))
    with pytest.raises(ConfigError, match='TorchScript archive, not a checkpoint: set it as model.backbone.pretrained'):
        check_checkpoint(str(tmp_path / 'release.pt'))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        check_checkpoint(str(tmp_path / 'gone.pth'))
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    with pytest.raises(OSError, match='text.pth.* is not a checkpoint that torch can load'):
        check_checkpoint(str(tmp_path / 'text.pth'))
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='no "state_dict"'):
        check_checkpoint(str(tmp_path / 'other.pth'))
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='must hold named tensors'):
        check_checkpoint(str(tmp_path / 'empty.pth'))
    torch.save({'state_dict': {'weight': torch.ones(2)}}, tmp_path / 'weights.pth')
    assert check_checkpoint(str(tmp_path / 'weights.pth'))['state_dict']['weight'].tolist() == [1, 1]
    with pytest.raises(ValueError, match='holds weights but no training state'):
        check_checkpoint(str(tmp_path / 'weights.pth'), resume=True)
    whole = (tmp_path / 'weights.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match='cut.pth.* is cut off'):
        check_checkpoint(str(tmp_path / 'cut.pth'))
