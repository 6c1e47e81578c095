"""A training, a study and the caches, killed at every file that they write: what is run again ends as if nothing had
happened."""

import json
import sys
from pathlib import Path

import kills
import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks up open files in /proc')


def train(towers, config, work_dir, launcher):
    """Train, with the tiny towers."""
    import open_clip

    from mmcfmask.engine.run_training import run_training

    open_clip.add_model_config(towers)
    run_training(config, work_dir=work_dir, resume='auto', launcher=launcher)


@pytest.fixture(scope='module')
def training(tmp_path_factory, tiny_towers, tiny_pretrained):
    """A function that runs, kills and resumes a training of 2 epochs, and the outcome of an undisturbed one with 1 and
    2 processes."""
    folder = tmp_path_factory.mktemp('training')
    cfg = Config.fromfile(str(ROOT / 'configs' / 'shapes' / 'ft.py'))
    cfg.merge_from_dict(
        {
            'model.backbone.model_name': 'tiny-vit',
            'model.backbone.pretrained': tiny_pretrained,
            'train_dataloader.dataset.size': 32,
            'train_dataloader.batch_size': 4,
            'total_batch_size': 8,
            'val_dataloader.dataset.size': 20,
            'train_cfg.max_epochs': 2,
            'env_cfg.cudnn_benchmark': False,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'optim_wrapper.optimizer.lr': 1e-2,
        }
    )
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline = pipeline
    cfg.model.head.class_weights.cache_dir = None
    cfg.model.head.class_weights.templates = ['a {}']
    for hook in cfg.custom_hooks:
        if hook['type'] == 'CheckpointHook':
            hook.update(interval=3, max_keep_ckpts=1)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None

    def run(name, processes, kill=None):
        cfg.model.head.class_weights.cache_dir = str(folder / name / 'cache')
        (folder / name).mkdir(exist_ok=True)
        cfg.dump(folder / name / 'config.py')
        return kills.run(
            ('test_kills', 'train'),
            str(tiny_towers),
            folder / name / 'config.py',
            folder / name / 'run',
            'pytorch' if processes > 1 else 'none',
            log=folder / f'{name}.log',
            kill=kill,
            processes=processes,
        )

    def outcome(name):
        """Everything that the checkpoints hold but times, and the names of all files but logs."""
        found, work_dir = {}, folder / name / 'run'
        for path in work_dir.glob('*.pth'):
            checkpoint = torch.load(path, weights_only=True)
            for part in ('state_dict', 'optimizer', 'param_schedulers'):
                found[path.name, part] = checkpoint.get(part)
            found[path.name, 'meta'] = {key: checkpoint['meta'].get(key) for key in ('epoch', 'iter', 'best', 'seed')}
        found['files'] = sorted(
            path.name for path in (*work_dir.iterdir(), *(folder / name / 'cache').iterdir()) if path.is_file()
        )
        found['last'] = Path((work_dir / 'last_checkpoint').read_text()).name
        return found

    return run, outcome


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope='module')
def whole(training):
    """Number of processes to names of the files that an undisturbed run writes, and its outcome; run when first asked
    for."""
    run, outcome = training
    done = {}

    def of(processes):
        if processes not in done:
            done[processes] = run(f'whole{processes}', processes), outcome(f'whole{processes}')
        return done[processes]

    return of


def kill_and_resume(training, whole, processes, number, when):
    run, outcome = training
    name = f'{processes}_{number}_{when}'
    run(name, processes, kill=(number, when))
    run(name, processes)
    expected, found = whole(processes)[1], outcome(name)
    assert found['files'] == expected['files'], (name, whole(processes)[0][number])
    assert same(found, expected), (name, whole(processes)[0][number])


@pytest.mark.parametrize(
    'processes, file, when',
    [
        (1, 'resume_4.pth', 'middle'),
        (1, -4, 'after'),  # that of resume_16.pth, before resume_12.pth is deleted
        (1, 'epoch_1.pth', 'after'),
        (1, 'last_checkpoint', 'before'),
        (1, 'best.pth', 'after'),
        (2, 'epoch_2.pth', 'middle'),
    ],
)
def test_training_killed_at_a_file(training, whole, processes, file, when):
    files = whole(processes)[0]
    assert (
        files.count('last_checkpoint') == sum(name.startswith(('epoch', 'resume')) for name in files) >= 4
        and 'best.pth' in files
    )
    number = files.index(file) if isinstance(file, str) else len(files) + file
    kill_and_resume(training, whole, processes, number, when)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_killed_at_every_file(training, whole, processes):
    for number in range(len(whole(processes)[0])):
        for when in kills.WHEN:
            kill_and_resume(training, whole, processes, number, when)


# A study of tools that write what the real ones write, in no time.
FAKE = """
import hashlib, json, sys
from pathlib import Path
tool, arguments = Path(sys.argv[1]).name, sys.argv[2:]
option = lambda name: arguments[arguments.index(name) + 1]
if tool == 'train.py':
    folder = Path(option('--work-dir'))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('epoch_1.pth', 'best.pth'):
        (folder / name).write_text(f'{name} of seed {option("--seed")}')
elif tool == 'soup.py':
    made_of = [path for path in arguments if path.endswith('.pth') and path != option('--out')]
    Path(option('--out')).write_text(''.join(Path(path).read_text() for path in made_of))
else:
    tested = [Path(path).read_text() for path in arguments if path.endswith('.pth')]
    top1 = int(hashlib.sha256(''.join(tested).encode()).hexdigest(), 16) % 1000 / 10
    sets = {name: dict(metrics=dict(top1=top1 - i), notes=[], images=10) for i, name in enumerate(('test', 'v2'))}
    Path(option('--out')).write_text(json.dumps(dict(
        format=1, config='ft.py', method='ft', seed=None, checkpoint=None, id_set='test', sets=sets, missing={},
        versions={}, metrics={})))
"""


def run_study(folder):
    from rich.console import Console

    from mmcfmask.experiments import commands, study
    from mmcfmask.experiments.scheduler import run_jobs
    from mmcfmask.experiments.spec import StudySpec

    commands.tool = lambda name, *args: [str(folder / 'fake.py'), name, *map(str, args)]
    study.run_jobs = lambda *args, **kwargs: run_jobs(*args, **kwargs, refresh=0.01)
    config = str(ROOT / 'configs' / 'shapes' / '{config}.py')
    spec = StudySpec(
        methods={'FT': 'ft', 'Soup': dict(soup='FT')},
        out=str(folder / 'out'),
        datasets=dict(shapes=config),
        seeds=[0, 1],
        pictures=False,
    )
    assert not study.Study(spec).run(Console(file=sys.stdout))


@pytest.mark.parametrize('sample', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_study_killed_at_a_file(tmp_path, sample):

    def run(name, kill=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / 'fake.py').write_text(FAKE)
        return kills.run(('test_kills', 'run_study'), folder, log=tmp_path / f'{name}.log', kill=kill)

    def outcome(name):
        out = tmp_path / name / 'out'
        return {
            str(path.relative_to(out)): path.read_text().replace(str(out.parent), '')
            for path in out.rglob('*')
            if path.is_file() and path.suffix not in ('.log', '.png', '.py', '.jsonl') and path.name != '.lock'
        }

    files = run('whole')
    expected = outcome('whole')
    assert files.count('test.json') == 3 and {'key', 'config.py', 'results.md', 'results.json', 'id_ood.png'} <= set(
        files
    )
    assert not [name for name in expected if name.endswith('.part')] and json.loads(expected['shapes/results.json'])
    points = [(number, when) for number in range(len(files)) for when in kills.WHEN]
    if sample:
        points = [
            (files.index('key'), 'after'),
            (files.index('test.json'), 'middle'),
            (files.index('results.json'), 'before'),
        ]
    for number, when in points:
        name = f'{number}_{when}'
        run(name, kill=(number, when))
        run(name)
        assert outcome(name) == expected, (files[number], when)


def fill_cache(tree, cache_dir, die_at=None):
    """Read all images through the cache; die in the middle of writing an image or its record."""
    import os
    import signal

    from test_kills import cached_images

    pwrite, seen = os.pwrite, []

    def counted(descriptor, data, offset):
        seen.append(offset)
        if len(seen) - 1 == die_at:
            pwrite(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(descriptor, data, offset)

    os.pwrite = counted
    cached_images(tree, cache_dir)


def cached_images(tree, cache_dir=None):
    from mmpretrain.registry import DATASETS

    dataset = dict(
        type='FolderDataset',
        data_root=str(tree),
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
            dict(type='PackInputs'),
        ],
    )
    dataset = DATASETS.build(
        dict(type='CachedDataset', dataset=dataset, cache_dir=str(cache_dir)) if cache_dir else dataset
    )
    return [dataset[i]['inputs'].clone() for i in range(len(dataset))]


CACHE_POINTS = [dict(kill=(number, when)) for number in range(2) for when in kills.WHEN] + [
    dict(die_at=number) for number in range(8)
]


@pytest.mark.parametrize(
    'points', [CACHE_POINTS[1:8:3], pytest.param(CACHE_POINTS, marks=pytest.mark.slow)], ids=['some', 'every']
)
def test_image_cache_killed_at_a_write(tmp_path, points):
    from mmengine.registry import init_default_scope
    from oracle import write_tree

    init_default_scope('mmpretrain')
    write_tree(tmp_path / 'tree', [(0,), (1,)], 2)
    expected = cached_images(tmp_path / 'tree')
    files = kills.run(('test_kills', 'fill_cache'), tmp_path / 'tree', tmp_path / 'whole', log=tmp_path / 'log')
    assert [Path(name).suffix for name in files] == ['.json', '.images']
    for number, point in enumerate(points):
        cache_dir, die_at = tmp_path / f'{number}', point.get('die_at')
        how = dict(dies=True) if die_at is not None else point
        kills.run(('test_kills', 'fill_cache'), tmp_path / 'tree', cache_dir, die_at, log=tmp_path / 'log', **how)
        assert same(cached_images(tmp_path / 'tree', cache_dir), expected), point
        assert same(cached_images(tmp_path / 'tree', cache_dir), expected)
        assert not list(cache_dir.glob('.*.part'))
