import json

import pytest
from synthetic_runs import run_dict, write_run

from mmcfmask.errors import ConfigError
from mmcfmask.reporting.runs import (
    collect_metric,
    find_differences,
    find_problems,
    find_runs,
    group_runs,
    list_sets,
    read_run,
)

ACCURACIES = {'imagenet': 80.0, 'imagenet-r': 60.0, 'objectnet': 50.0}


def test_runs_are_found_and_grouped_over_seeds(tmp_path):
    for seed in (2, 10, 1):
        write_run(tmp_path / f'ft/seed{seed}/metrics.json', {**ACCURACIES, 'imagenet-r': 60.0 + seed}, seed=seed)
    write_run(tmp_path / 'zs.json', ACCURACIES, method='zs', seed=None)
    runs = find_runs([tmp_path / 'ft', str(tmp_path / 'zs.json'), tmp_path / 'ft/seed1'])  # seed1 twice counts once
    methods = group_runs(runs)
    assert {m: [run.seed for run in group] for m, group in methods.items()} == {'ft': [1, 2, 10], 'zs': [None]}
    assert list_sets(runs) == tuple(ACCURACIES)
    assert collect_metric(methods, 'top1')['ft'] == [{**ACCURACIES, 'imagenet-r': 60.0 + seed} for seed in (1, 2, 10)]
    assert collect_metric(methods, 'mce') == {}


def test_methods_are_named_on_the_command_line(tmp_path):
    write_run(tmp_path / 'lr=1e-5/a/metrics.json', ACCURACIES)
    write_run(tmp_path / 'lr=1e-5/b/metrics.json', ACCURACIES, seed=1, method='other')
    folder = tmp_path / 'lr=1e-5'
    assert {run.method for run in find_runs([f'My FT={folder}'])} == {'My FT'}
    assert {run.method for run in find_runs([str(folder)])} == {
        'ft',
        'other',
    }  # "=" in the path of a folder that is there


def test_wise_ft_in_a_runs_folder_is_a_method_of_its_own(tmp_path):
    write_run(tmp_path / 'metrics.json', ACCURACIES)
    write_run(tmp_path / 'wise_ft/metrics.json', ACCURACIES, method='ft_wise_ft', wise_ft_alpha=0.5)
    assert list(group_runs(find_runs([f'FT={tmp_path}']))) == ['FT', 'FT + WiSE-FT']
    assert list(group_runs(find_runs([tmp_path]))) == ['ft', 'ft_wise_ft']


@pytest.mark.parametrize(
    'source, message',
    [
        ('{}', 'no metrics.json in or below this folder'),
        ('{}/nothing', 'nothing: there is no such folder or file'),
        ('FT={}/nothing', 'nothing: there is no such folder or file'),
        ('={}', 'is not NAME=FOLDER'),
        ('FT=', 'is not NAME=FOLDER'),
    ],
)
def test_nothing_to_read(tmp_path, source, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_runs([source.format(tmp_path)])


def broken(change):
    content = run_dict(ACCURACIES)
    change(content)
    return content


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c.pop('format'), "'format' is missing"),
        (lambda c: c.update(format=7), 'format 7; this version of mmcfmask reads format 1'),
        (lambda c: c.update(method=None), "'method' must be a name, got None"),
        (lambda c: c.update(seed='0'), "'seed' must be an integer or null, got '0'"),
        (lambda c: c.pop('id_set'), "'id_set' must be the name of a set"),
        (lambda c: c.update(sets={}), "'sets' must contain"),
        (lambda c: c['sets']['imagenet-r'].pop('metrics'), 'sets.imagenet-r.metrics must contain'),
        (
            lambda c: c['sets']['imagenet-r']['metrics'].update(nll=float('nan')),
            'sets.imagenet-r.metrics.nll must be a finite number, got nan',
        ),
        (
            lambda c: c['sets']['imagenet-r']['metrics'].update(top1='60'),
            "sets.imagenet-r.metrics.top1 must be a finite number, got '60'",
        ),
        (
            lambda c: c['sets']['imagenet-r']['metrics'].update(top5=160),
            'sets.imagenet-r.metrics.top5 must be a percentage in 0..100, got 160',
        ),
        (lambda c: [part['metrics'].pop('top1') for part in c['sets'].values()], "no set has the metric 'top1'"),
    ],
)
def test_bad_content(tmp_path, change, message):
    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=message) as error:
        read_run(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('text', ['', '{"format": 1, "sets": {', '[1, 2]', b'\xff\xfe'])
def test_broken_json(tmp_path, text):
    path = tmp_path / 'metrics.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"metrics\.json: (not valid JSON|'format' is missing)"):
        find_runs([tmp_path])


def test_same_method_and_seed(tmp_path):
    write_run(tmp_path / 'a/metrics.json', ACCURACIES)
    write_run(tmp_path / 'b/metrics.json', ACCURACIES)
    with pytest.raises(ValueError, match=r"two runs of 'ft' with seed 0: .*a/metrics.json and .*b/metrics.json"):
        group_runs(find_runs([tmp_path]))
    assert len(group_runs(find_runs([f'A={tmp_path}/a', f'B={tmp_path}/b']))) == 2
    with pytest.raises(ValueError, match="two runs of 'zs' without a seed"):
        group_runs([read_run(write_run(tmp_path / f'{i}.json', ACCURACIES, method='zs', seed=None)) for i in range(2)])


@pytest.mark.parametrize(
    'change, difference',
    [
        (dict(checkpoint=None), 'b.json was tested without a checkpoint'),
        (dict(checkpoint=None, seed=None), 'b.json was tested without a checkpoint'),
        (dict(seed=None, checkpoint=dict(path='x.pth', sha256='0')), 'b.json has no seed'),
        (dict(amp=True), 'with --amp: False and True'),
        (dict(inference=dict(gate=True, second_look=None)), 'inference: {} and {.knn_gate'),
        (dict(wise_ft_alpha=0.5), 'wise_ft_alpha: None and 0.5'),
        (dict(soup='greedy'), 'soup: None and greedy'),
        (dict(training={'optim_wrapper.optimizer.lr': '1e-05'}), 'optim_wrapper.optimizer.lr: 3e-05 and 1e-05'),
        (dict(training={}), 'optim_wrapper.optimizer.lr: 3e-05 and None'),
        (
            dict(sets={'imagenet-r': dict(transform=['Resize(256)'])}),
            r'transform of imagenet-r: .*CenterCrop\(224\) and Resize\(256',
        ),
        (dict(sets={'objectnet': dict(dataset='Other')}), 'dataset of objectnet: FolderDataset and Other'),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_pooled(tmp_path, change, difference):
    """An untrained test of a config that another run was trained with, say: no second seed of it."""
    known = dict(training={'optim_wrapper.optimizer.lr': '3e-05'})
    write_run(tmp_path / 'a.json', ACCURACIES, **known)
    write_run(tmp_path / 'b.json', ACCURACIES, **{'seed': 1, **known, **change})
    with pytest.raises(
        ConfigError,
        match=rf"'ft': .* differ in more than the seed \(.*{difference}.*different names: NAME=FOLDER",
    ):
        group_runs(find_runs([tmp_path / 'a.json', tmp_path / 'b.json']))
    named = group_runs(find_runs([f'A={tmp_path}/a.json', f'B={tmp_path}/b.json']))
    assert [len(group) for group in named.values()] == [1, 1]


def test_seeds_are_pooled(tmp_path):
    """Images that were left out are marked; files of older versions say nothing of the training."""
    for seed, more in enumerate((dict(training={'a': '1'}), dict(training={'a': '1'}), dict(training=None), {})):
        write_run(tmp_path / f'{seed}.json', ACCURACIES, seed=seed, sets={'imagenet-r': dict(skipped=seed)}, **more)
    assert [run.seed for run in group_runs(find_runs(tmp_path.glob('*.json')))['ft']] == [0, 1, 2, 3]


OLD_TRAINING = {
    'model.type': 'CounterfactualClassifier',
    'model.head.distill': 'feature',
    'model.head.distill_weight': '30.0',
    'model.teacher.type': 'OpenCLIPTeacher',
    'model.data_preprocessor.mask': 'object',
    'model.data_preprocessor.fill': 'single',
}
TRAINING = {key: text for key, text in OLD_TRAINING.items() if key.split('.')[1] in ('type', 'teacher')}
DISTILLED = {key: text for key, text in OLD_TRAINING.items() if 'data_preprocessor' not in key}


def without(settings, *keys):
    return {key: text for key, text in settings.items() if key not in keys}


@pytest.mark.parametrize(
    'old, new',
    [
        (without(OLD_TRAINING, 'model.teacher.type'), {'model.type': 'CounterfactualClassifier'}),  # FT and EMA
        (
            {**without(OLD_TRAINING, 'model.head.distill'), 'model.auxiliary': "[{'alpha': 0.1, 'type': 'L2SP'}]"},
            {**TRAINING, 'model.losses': "[{'alpha': 0.1, 'type': 'L2SP'}]"},
        ),
        (OLD_TRAINING, {**OLD_TRAINING, 'model.losses': "[{'type': 'CounterfactualDistillation'}]"}),
        (
            {**OLD_TRAINING, 'model.data_preprocessor.colors': '0.7'},  # CFMask+
            {
                **OLD_TRAINING,
                'model.data_preprocessor.color_mixing': '0.7',
                'model.losses': "[{'type': 'CounterfactualDistillation'}]",
            },
        ),
        (
            without(OLD_TRAINING, 'model.data_preprocessor.mask'),  # FD
            {**DISTILLED, 'model.losses': "[{'type': 'Distillation'}]"},
        ),
        (
            {**without(OLD_TRAINING, 'model.data_preprocessor.mask'), 'model.head.distill': 'logits'},  # KD
            {**DISTILLED, 'model.head.distill': 'logits', 'model.losses': "[{'type': 'Distillation'}]"},
        ),
        (
            {**without(OLD_TRAINING, 'model.teacher.type'), 'model.auxiliary': "[{'type': 'FLYP'}]"},
            {'model.type': 'CounterfactualClassifier', 'model.losses': "[{'type': 'FLYP'}]"},
        ),
    ],
    ids=['ft', 'l2sp', 'cfmask', 'cfmask_plus', 'fd', 'kd', 'flyp'],
)
def test_seeds_of_version_0_1_0_are_pooled_with_those_of_today(tmp_path, old, new):
    write_run(tmp_path / '0.json', ACCURACIES, training=old, versions=dict(mmcfmask='0.1.0'))
    write_run(tmp_path / '1.json', ACCURACIES, seed=1, training=new, versions=dict(mmcfmask='0.2.0'))
    assert [run.seed for run in group_runs(find_runs(tmp_path.glob('*.json')))['ft']] == [0, 1]
    other = {**new, 'model.losses': "[{'type': 'LipsumFT'}]"}
    write_run(tmp_path / '1.json', ACCURACIES, seed=1, training=other, versions=dict(mmcfmask='0.2.0'))
    with pytest.raises(ConfigError, match=r'differ in more than the seed \(model'):
        group_runs(find_runs(tmp_path.glob('*.json')))


def test_a_result_of_version_0_1_0_that_cannot_be_compared_must_be_tested_again(tmp_path):
    old = {**OLD_TRAINING, 'model.auxiliary': "[{'type': 'FLYP', 'templates… (0a1b2c3d)"}
    for seed in range(2):
        write_run(tmp_path / f'{seed}.json', ACCURACIES, seed=seed, training=old, versions=dict(mmcfmask='0.1.0'))
    assert len(group_runs(find_runs(tmp_path.glob('*.json')))['ft']) == 2
    write_run(tmp_path / '1.json', ACCURACIES, seed=1, training=TRAINING, versions=dict(mmcfmask='0.2.0'))
    with pytest.raises(ConfigError, match=r'mmcfmask 0\.1\.0 wrote .*0\.json: test its checkpoint again'):
        group_runs(find_runs(tmp_path.glob('*.json')))


def test_id_sets_must_be_the_same(tmp_path):
    write_run(tmp_path / 'a/metrics.json', ACCURACIES)
    write_run(tmp_path / 'b/metrics.json', {'test': 90.0, 'v2': 80.0}, method='zs')
    with pytest.raises(
        ValueError, match=r"different in-distribution sets: 'imagenet' \(.*a/metrics.json\) and 'test' \(.*b/"
    ):
        group_runs(find_runs([tmp_path]))


def test_a_set_must_have_the_same_classes(tmp_path):
    write_run(tmp_path / 'a/metrics.json', {'test': 90.0, 'v2': 80.0})
    write_run(tmp_path / 'b/metrics.json', {'test': 90.0, 'v2': 80.0}, method='zs', sets={'test': dict(num_classes=7)})
    with pytest.raises(
        ValueError, match=r"'test' is not the same set in all runs: its number of classes is 6 in .*a/.*, 7 in .*b/"
    ):
        group_runs(find_runs([tmp_path]))


def test_seeds_must_be_tested_on_the_same_sets(tmp_path):
    write_run(tmp_path / 'a/metrics.json', ACCURACIES)
    write_run(tmp_path / 'b/metrics.json', {'imagenet': 80.0}, seed=1)
    with pytest.raises(
        ValueError, match=r"'ft': top1 on imagenet-r, objectnet is in only one of .*a/metrics.json and .*b/metrics.json"
    ):
        collect_metric(group_runs(find_runs([tmp_path])), 'top1')


@pytest.mark.parametrize(
    'entry, expected',
    [
        ({}, None),
        (dict(images=29000, complete=False), '29,000 images, 30,000 are published'),
        (
            dict(images=29000, complete=False, notes=['incomplete: 29,000 of 30,000 images']),
            'incomplete: 29,000 of 30,000 images',
        ),
        (dict(skipped=1), '1 unreadable image left out'),
        (dict(images=29000, skipped=1000), '29,000 images, 30,000 are published, 1,000 unreadable images left out'),
        (dict(classes=199), '199 classes, 200 are published'),
        (dict(complete=False), 'incomplete'),
        (dict(published_images=None, published_classes=None, complete=None), None),
    ],
)
def test_what_is_wrong_with_a_set(tmp_path, entry, expected):
    run = read_run(write_run(tmp_path / 'metrics.json', ACCURACIES, sets={'imagenet-r': entry}))
    assert find_problems([run]) == ({'imagenet-r': expected} if expected else {})


def test_missing_sets_and_differing_seeds(tmp_path):
    runs = [
        read_run(
            write_run(
                tmp_path / f'{seed}.json',
                ACCURACIES,
                seed=seed,
                missing={'imagenet-a': 'no folder\n  data/imagenet-a'},
                sets={'imagenet-r': dict(skipped=seed)},
            )
        )
        for seed in range(3)
    ]
    assert find_problems(runs) == {
        'imagenet-a': 'not tested, no folder data/imagenet-a',
        'imagenet-r': '1 unreadable image left out; 2 unreadable images left out',
    }


def test_differences_between_runs(tmp_path):
    a = read_run(write_run(tmp_path / 'a.json', ACCURACIES))
    b = read_run(
        write_run(
            tmp_path / 'b.json',
            ACCURACIES,
            method='b',
            sets={
                'imagenet-r': dict(transform=['Resize(256)', 'CenterCrop(224)']),
                'objectnet': dict(images=18000),
                'imagenet': dict(transform=['Resize(224)', 'CenterCrop(224)', 'PackInputs(meta_keys=…)']),
            },
        )
    )
    assert find_differences([a, a]) == []
    assert find_differences([a, b]) == [
        'imagenet-r: different transforms: Resize(224) → CenterCrop(224) (ft seed 0); Resize(256) → CenterCrop(224) (b '
        'seed 0).',
        'objectnet: different numbers of images: 18,574 (ft seed 0); 18,000 (b seed 0).',
    ]
