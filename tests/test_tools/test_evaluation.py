"""Tests and WiSE-FT on several sets: numbers, files, the printed table, and errors."""

import csv
import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import launch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from oracle import config, loader, write_tree

from mmcfmask.engine.run_test import run_test
from mmcfmask.engine.run_training import run_training
from mmcfmask.engine.run_wise_ft import run_wise_ft
from mmcfmask.errors import ConfigError, MissingFileError, StorageError
from mmcfmask.reporting.runs import find_runs, group_runs

ROOT = Path(__file__).parents[2]
SUBSET = tuple((index,) for index in range(3, 1000, 50))
MANY = ((0, 10), (5,), (700, 701, 999), (2,), (1,), (4, 8))
SETS = ('test', 'v2', 'r', 'sketch', 'a', 'groups')
SMALL = [f'test_dataloader.{name}.dataset.size=20' for name in SETS]


evaluate, wise_ft = partial(run_test, show=True), partial(run_wise_ft, show=True)


def run_on_two_processes(script, *arguments):
    done = launch(script, 2, *arguments, '--launcher', 'pytorch')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture
def write(tmp_path):
    """Writes a config of the oracle on an ID set and three shifts, one of them missing, and returns its path."""
    write_tree(tmp_path / 'data' / 'subset', SUBSET, 3, wrong=0.3)
    write_tree(tmp_path / 'data' / 'many', MANY, 3, wrong=0.3, seed=1)
    write_tree(tmp_path / 'data' / 'right', MANY, 2, seed=2)

    def make(name, batch_size, **changes):
        data = tmp_path / 'data'
        sets = {
            'id': loader(data / 'subset', batch_size, SUBSET, published=dict(images=60, num_classes=20)),
            'many': loader(data / 'many', batch_size, MANY, published=dict(images=20, num_classes=6)),
            'right': loader(data / 'right', batch_size, MANY),
            'gone': loader(data / 'gone', batch_size, MANY),
        }
        cfg = config(sets, tmp_path / 'run', dict(distracted=(50, 51)), skip_missing=True)
        del cfg['experiment_name']
        cfg.update(changes)
        Config(cfg).dump(tmp_path / f'{name}.py')
        return tmp_path / f'{name}.py'

    return make


def comparable(path):
    """metrics.json without what differs from run to run."""
    run = json.loads(path.read_text())
    for part in run['sets'].values():
        del part['speed']
    return {key: value for key, value in run.items() if key not in ('config', 'method', 'command')}


def test_processes_and_batch_sizes_do_not_matter(write, tmp_path):
    """60, 18 and 12 images on 1 and 2 processes, in batches of 1, 7 and 64 give the same metrics.json."""
    for size in (1, 7, 64):
        evaluate(write(f'b{size}', size), out=tmp_path / f'one{size}.json', predictions=tmp_path / f'one{size}')
    run_on_two_processes(
        'tools/test.py',
        write('b7', 7),
        '--out',
        tmp_path / 'two7.json',
        '--predictions',
        tmp_path / 'two7',
    )
    first = comparable(tmp_path / 'one1.json')
    assert 50 < first['metrics']['id/top1'] < 100 and first['metrics']['right/top1'] == 100
    for name in ('one7', 'one64', 'two7'):
        assert comparable(tmp_path / f'{name}.json') == first, name
        for part in ('id', 'many', 'right'):
            assert (tmp_path / name / f'{part}.csv').read_bytes() == (tmp_path / 'one1' / f'{part}.csv').read_bytes()
    assert not (ROOT / '.dist_test').exists()  # results are exchanged by the process group, not by files


def test_metrics_json_and_table(write, tmp_path, capfd):
    evaluate(write('oracle', 7), out=tmp_path / 'new' / 'metrics.json', predictions=tmp_path / 'predictions')
    result = json.loads((tmp_path / 'new' / 'metrics.json').read_text())
    assert set(result) == {
        'format',
        'command',
        'config',
        'method',
        'seed',
        'checkpoint',
        'training',
        'amp',
        'id_set',
        'sets',
        'ood_average',
        'selected_by',
        'missing',
        'versions',
        'metrics',
    }
    found = [result[key] for key in ('format', 'method', 'checkpoint', 'seed', 'id_set')]
    assert found == [1, 'zero-shot', None, None, 'id']
    assert set(result['sets']['id']) == {
        'metrics',
        'dataset',
        'root',
        'images',
        'published_images',
        'classes',
        'published_classes',
        'complete',
        'skipped',
        'notes',
        'transform',
        'per_class',
        'per_class_count',
        'reliability',
        'speed',
    }
    assert result['sets']['id']['complete'] is True and result['sets']['many']['complete'] is False
    assert result['sets']['right']['complete'] is None and len(result['sets']['id']['reliability']) == 15
    assert result['sets']['many']['notes'] == ['incomplete: 18 of 20 images']
    assert result['ood_average'] == dict(top1=result['metrics']['ood_average/top1'], over=['many', 'right'])
    assert result['metrics']['many/ece'] == result['sets']['many']['metrics']['ece']
    assert 'get it from the shop' in result['missing']['gone']
    text = ' '.join(capfd.readouterr().out.split())
    assert 'OOD avg: unweighted mean of many, right.' in text and 'many: incomplete: 18 of 20 images.' in text
    assert 'gone: missing, not tested. there is no' in text and ' zero-shot ' in text and 'checkpoint: none' in text
    assert f'written: {tmp_path}/new/metrics.json {tmp_path}/predictions/id.csv {tmp_path}/predictions/many.csv' in text
    with open(tmp_path / 'predictions' / 'many.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['path', 'gt', 'pred', 'correct', 'confidence'] and len(rows) == 18
    assert all(
        Path(row['path']).parent.name == row['gt'] and (row['gt'] == row['pred']) == (row['correct'] == '1')
        for row in rows
    )
    assert 100 * sum(row['correct'] == '1' for row in rows) / 18 == pytest.approx(result['metrics']['many/top1'])


def test_shifts_by_name(write, tmp_path, monkeypatch):
    path = write('oracle', 7)
    evaluate(path, shifts=['right'], out=tmp_path / 'metrics.json')
    result = json.loads((tmp_path / 'metrics.json').read_text())
    assert (
        list(result['sets']) == ['id', 'right']
        and result['missing'] == {}
        and result['ood_average']['over'] == ['right']
    )
    with pytest.raises(ConfigError, match="no such shift: 'left'; the shifts of this config are gone, many, right"):
        evaluate(path, shifts=['left'])
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'any.pth')
    for module, command in (('run_test', evaluate), ('run_wise_ft', wise_ft)):
        monkeypatch.setattr(f'mmcfmask.engine.{module}.build_runner', None)  # no model is built
        with pytest.raises(MissingFileError, match='test_dataloader.gone.dataset: there is no .*get it from the shop'):
            command(path, tmp_path / 'any.pth', shifts=['right', 'gone'])


def test_id_set_that_is_missing_is_reported(write, tmp_path, capfd):
    path = write('oracle', 7)
    cfg = Config.fromfile(path)
    cfg.test_cfg.id_set = 'gone'
    cfg.dump(path)
    evaluate(path, shifts=['right'], out=tmp_path / 'metrics.json')
    assert 'gone: missing, not tested' in ' '.join(capfd.readouterr().out.split())
    result = json.loads((tmp_path / 'metrics.json').read_text())
    assert result['id_set'] == 'gone' and list(result['sets']) == ['right']


def test_broken_images(write, tmp_path, capfd):
    path = write('oracle', 7)
    broken = tmp_path / 'data' / 'right' / 'class0003' / '1.png'
    broken.write_bytes(broken.read_bytes()[:-25])
    with pytest.raises(
        StorageError,
        match='class0003/1.png cannot be read as an image.*--skip-broken of tools/test.py.*skip_unr',
    ):
        evaluate(path, shifts=['right'])
    evaluate(path, shifts=['right'], skip_broken=True, out=tmp_path / 'metrics.json')
    part = json.loads((tmp_path / 'metrics.json').read_text())['sets']['right']
    assert part['images'] == 11 and part['metrics']['top1'] == 100
    cfg = Config.fromfile(path)
    cfg.test_dataloader.right.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.right.dataset])
    cfg.dump(path)
    evaluate(path, shifts=['right'], skip_broken=True, out=tmp_path / 'wrapped.json')
    wrapped = json.loads((tmp_path / 'wrapped.json').read_text())['sets']['right']
    assert (wrapped['images'], wrapped['skipped'], wrapped['root']) == (11, 1, part['root'])
    with pytest.raises(ConfigError, match='the test set test is a ShapesDataset, which cannot leave out broken images'):
        evaluate('configs/shapes/zeroshot.py', work_dir=tmp_path, skip_broken=True)


def test_what_is_wrong_is_found_before_the_test(write, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(StorageError, match='cannot write to the folder .*choose another with --out'):
        evaluate(write('oracle', 7), out=tmp_path / 'file' / 'metrics.json')
    torch.save(dict(state_dict={'head.fc.weight': torch.zeros(7, 128)}), tmp_path / 'seven.pth')
    for command in (evaluate, wise_ft):
        with pytest.raises(
            ConfigError, match='seven.pth was trained for 7 classes, but the config has model.head.num_classes=10'
        ):
            command('configs/shapes/ft.py', tmp_path / 'seven.pth', work_dir=tmp_path)
        with pytest.raises(MissingFileError, match='there is no checkpoint .*gone.pth'):
            command('configs/shapes/ft.py', tmp_path / 'gone.pth', work_dir=tmp_path)


def test_checkpoint_of_another_tower(tmp_path, capfd):
    """mmengine would log what does not fit and test random weights."""
    cfg = Config.fromfile('configs/shapes/zeroshot.py')
    weights = MODELS.build(cfg.model).state_dict()
    wrong = {
        '1 missing: backbone.visual.conv1.weight': {key: value for key, value in weights.items() if 'conv1' not in key},
        '1 unexpected: backbone.visual.more': {**weights, 'backbone.visual.more': torch.zeros(1)},
        'backbone.visual.proj .* instead of': {**weights, 'backbone.visual.proj': torch.zeros(2, 2)},
    }
    for message, state_dict in wrong.items():
        torch.save(dict(state_dict=state_dict), tmp_path / 'other.pth')
        for command in (evaluate, wise_ft):
            with pytest.raises(ConfigError, match=f'other.pth does not fit the model of the config: .*{message}'):
                command('configs/shapes/ft.py', tmp_path / 'other.pth', SMALL, work_dir=tmp_path)
    torch.save(dict(state_dict={**weights, 'losses.0.text': torch.zeros(1)}), tmp_path / 'flyp.pth')
    evaluate('configs/shapes/ft.py', tmp_path / 'flyp.pth', SMALL, work_dir=tmp_path)
    lines = capfd.readouterr().out.splitlines()
    assert (
        any(line.strip().startswith('ft ') for line in lines) and f'checkpoint: {tmp_path}/flyp.pth' in lines
    )  # not wrapped
    assert not any(line.startswith('written:') for line in lines)


def test_alphas_out_of_range(tmp_path):
    with pytest.raises(ConfigError, match=r'alphas must lie in \[0, 1\]'):
        wise_ft('configs/shapes/ft.py', tmp_path / 'any.pth', alphas=['0', '2'])
    with pytest.raises(ConfigError, match='--predictions are those at α = 0.5: add it to --alphas'):
        wise_ft('configs/shapes/ft.py', tmp_path / 'any.pth', alphas=['0', '1'], predictions=tmp_path)


def test_vrf(tmp_path, capfd, monkeypatch):
    """The pretrained weights have mended nothing, so VRF answers as they do; its arguments come with the options."""
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))
    few = [f'{part}_dataloader.dataset.size=20' for part in ('train', 'val')]
    one, two = tmp_path / 'one.json', tmp_path / 'two.json'
    evaluate('configs/shapes/ft.py', None, SMALL, work_dir=tmp_path, out=one)
    evaluate('configs/shapes/ft.py', None, [*SMALL, *few, 'model.knn_gate.a=1.2'], vrf=True, work_dir=tmp_path, out=two)
    assert ' zero-shot + VRF ' in ' '.join(capfd.readouterr().out.split())
    one, two = (json.loads(out.read_text()) for out in (one, two))
    assert two['inference'] == dict(knn_gate=False, crop_scale=None, vrf=True) and two['method'] == 'zero-shot + VRF'
    assert {name: one['metrics'][f'{name}/top1'] for name in SETS} == {
        name: two['metrics'][f'{name}/top1'] for name in SETS
    }
    with pytest.raises(ConfigError, match='not both: leave out --knn-gate or --vrf'):
        evaluate('configs/shapes/ft.py', None, vrf=True, knn_gate=True)
    with pytest.raises(ConfigError, match="model.knn_gate: VRF has no 'level'"):
        evaluate('configs/shapes/ft.py', None, ['model.knn_gate.level=0.1'], vrf=True)


def test_relevance_crop_of_small_objects(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('COLUMNS', '160')  # the name is not wrapped
    one, two, closer = tmp_path / 'one.json', tmp_path / 'two.json', tmp_path / 'closer.json'
    options = [*SMALL, 'test_dataloader.a.dataset.size=100']
    for out, scale in ((one, None), (two, 0.9), (closer, 0.8)):
        evaluate('configs/shapes/zeroshot.py', None, options, work_dir=tmp_path, out=out, crop_scale=scale)
    assert ' zero-shot + relevance crop ' in ' '.join(capfd.readouterr().out.split())
    assert {name: len(runs) for name, runs in group_runs(find_runs([one, two])).items()} == {
        'zero-shot': 1,
        'zero-shot + relevance crop': 1,
    }
    one, two, closer = (json.loads(out.read_text()) for out in (one, two, closer))
    assert one['metrics']['a/top1'] < two['metrics']['a/top1'] < closer['metrics']['a/top1']
    assert (
        two['inference'] == dict(knn_gate=False, crop_scale=0.9)
        and closer['inference']['crop_scale'] == 0.8
        and 'inference' not in one
    )
    with pytest.raises(ConfigError, match=r'crop_scale is the side .* in \(0, 1\), but it is 1.5'):
        evaluate('configs/shapes/zeroshot.py', work_dir=tmp_path, crop_scale=1.5)


def test_wise_ft(tmp_path, capfd):
    """α = 0 is the test without a checkpoint and α = 1 that of the checkpoint, on one process and on two."""
    options = ['train_dataloader.dataset.size=64', 'train_cfg.max_epochs=1']
    run_training('configs/shapes/ft.py', options, work_dir=tmp_path, validate=False)
    checkpoint = tmp_path / 'epoch_1.pth'
    evaluate('configs/shapes/zeroshot.py', None, SMALL, work_dir=tmp_path, out=tmp_path / 'zero.json')
    evaluate('configs/shapes/ft.py', checkpoint, SMALL, work_dir=tmp_path, out=tmp_path / 'one.json')
    capfd.readouterr()
    half = dict(save=0.5, predictions=tmp_path / 'predictions')
    wise_ft('configs/shapes/ft.py', checkpoint, SMALL, work_dir=tmp_path, alphas=['0:1:0.5'], **half)
    shown = ' '.join(capfd.readouterr().out.split())
    assert 'α = 0.5 (bold) is the default to report' in shown and 'wise_ft_0.5.pth' in shown
    line = json.loads((tmp_path / 'wise_ft' / 'wise_ft.json').read_text())
    assert [part['alpha'] for part in line['line']] == [0, 0.5, 1] and line['seed'] == 0
    assert line['checkpoint'] == dict(path=str(checkpoint), sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    for index, name in ((0, 'zero'), (2, 'one')):
        assert line['line'][index]['metrics'] == json.loads((tmp_path / f'{name}.json').read_text())['metrics']
    saved = tmp_path / 'wise_ft' / 'wise_ft_0.5.pth'
    half = dict(out=tmp_path / 'half.json', predictions=tmp_path / 'half')
    evaluate('configs/shapes/ft.py', saved, SMALL, work_dir=tmp_path, **half)
    for name in SETS:
        assert (tmp_path / 'half' / f'{name}.csv').read_text() == (tmp_path / f'predictions/{name}.csv').read_text()
    half = json.loads((tmp_path / 'half.json').read_text())
    assert half['metrics'] == line['line'][1]['metrics'] and half['seed'] == 0

    run_on_two_processes(
        'tools/wise_ft.py',
        'configs/shapes/ft.py',
        checkpoint,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'two',
        '--alphas',
        '0',
        '0.5',
        '1',
        '--cfg-options',
        *SMALL,
        *(f'test_dataloader.{name}.batch_size=7' for name in SETS),
    )
    two = json.loads((tmp_path / 'two' / 'wise_ft.json').read_text())
    for part, expected in zip(two['line'], line['line']):
        assert part['metrics'] == pytest.approx(expected['metrics'], rel=1e-4)
        assert {k: v for k, v in part['metrics'].items() if 'top' in k} == {
            k: v for k, v in expected['metrics'].items() if 'top' in k
        }
