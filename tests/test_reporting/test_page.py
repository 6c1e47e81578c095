"""The report on metrics.json files of models that do not exist."""

import csv
import itertools
import json
import math
import re
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from forks import run_script
from PIL import Image
from synthetic_runs import SHIFTS, write_run

from mmcfmask.errors import ConfigError, MissingFileError, StorageError
from mmcfmask.evaluation import read_reference_models
from mmcfmask.reporting import make_report, page
from mmcfmask.reporting.contents import gather_contents

ROOT = Path(__file__).parents[2]
SETS = ('imagenet', *SHIFTS)
ZERO_SHOT = dict(zip(SETS, (68.3, 61.9, 77.7, 50.0, 48.2, 54.0)))
FT = [
    dict(zip(SETS, values))
    for values in (
        (81.3, 70.9, 65.6, 36.7, 46.3, 49.6),
        (81.0, 70.5, 66.6, 35.7, 46.9, 50.6),
        (81.6, 71.9, 64.1, 36.1, 45.3, 49.0),
    )
]


@pytest.fixture
def runs(tmp_path):
    """FT with three seeds, one with images left out; zero-shot; ObjectNet is incomplete everywhere."""
    objectnet = dict(images=18000, complete=False)
    for seed, accuracies in enumerate(FT):
        sets = {'objectnet': objectnet, 'imagenet-r': dict(skipped=3) if seed == 1 else {}}
        write_run(tmp_path / f'runs/ft/seed{seed}/metrics.json', accuracies, seed=seed, sets=sets)
    write_run(tmp_path / 'runs/zs/metrics.json', ZERO_SHOT, method='zs', seed=None, sets={'objectnet': objectnet})
    return tmp_path / 'runs'


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures take seconds; a test of tables does without."""
    monkeypatch.setattr(page, 'track', lambda *args, **kwargs: [])


def table(markdown, heading):
    """{method: {column: text}} of the first table under a heading."""
    lines = markdown.split(f'\n## {heading}')[1].split('\n')
    lines = itertools.takewhile(
        lambda line: line.startswith('|'), itertools.dropwhile(lambda line: not line.startswith('|'), lines)
    )
    header, _, *rows = ([cell.strip().replace('**', '') for cell in line.strip('|').split('|')] for line in lines)
    return {row[0]: dict(zip(header, row)) for row in rows}


def expected_robustness(run, shifts):
    """By the formula, from the shipped file: a fit of log-odds and the height above it."""
    models = [m for m in read_reference_models().values() if {'imagenet', *shifts} <= m.keys()]
    x = [math.log(m['imagenet'] / (100 - m['imagenet'])) for m in models]
    y = [mean(m[s] for s in shifts) for m in models]
    slope, intercept = np.linalg.lstsq(
        np.stack([x, np.ones(len(x))], 1), np.array([math.log(v / (100 - v)) for v in y]), rcond=None
    )[0]
    z = intercept + slope * math.log(run['imagenet'] / (100 - run['imagenet']))
    return mean(run[s] for s in shifts) - 100 / (1 + math.exp(-z))


def test_the_whole_report(runs, tmp_path):
    out = tmp_path / 'report'
    methods = (f'Zero-shot={runs}/zs', f'FT={runs}/ft')
    done = run_script('tools/report.py', *methods, '--out', out, '--compare', 'Zero-shot', 'FT')
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert 'report/report.md' in shown and 'FT' in shown and '±' in shown

    text = (out / 'report.md').read_text()
    accuracy = table(text, 'Top-1 accuracy')
    ids = [r['imagenet'] for r in FT]
    averages = [mean(r[s] for s in SHIFTS) for r in FT]
    assert accuracy['FT']['ID (imagenet)'] == f'{mean(ids):.1f} ± {stdev(ids):.1f}' and accuracy['FT']['Seeds'] == '3'
    assert accuracy['FT']['OOD avg'] == f'{mean(averages):.1f} ± {stdev(averages):.1f}†'
    assert accuracy['FT']['imagenet-r'].endswith('†') and not accuracy['Zero-shot']['imagenet-r'].endswith('†')
    assert accuracy['Zero-shot']['objectnet'] == '54.0†' and accuracy['Zero-shot']['imagenet-v2'] == '61.9'
    assert '† imagenet-r: 3 unreadable images left out (FT).' in text
    assert '† objectnet: 18,000 images, 18,574 are published.' in text

    robustness = table(text, 'Effective robustness')
    for shift in SHIFTS:
        values = [expected_robustness(r, [shift]) for r in FT]
        assert robustness['FT'][shift].rstrip('†') == f'{mean(values):+.1f} ± {stdev(values):.1f}'
    average = expected_robustness(ZERO_SHOT, SHIFTS)
    assert robustness['Zero-shot']['OOD avg'] == accuracy['Zero-shot']['Eff. rob.'] == f'{average:+.1f}†'
    assert robustness['Zero-shot']['objectnet'].endswith('†') and not robustness['Zero-shot']['imagenet-v2'].endswith(
        '†'
    )
    assert '| imagenet-a | 84 |' in text and 'R²' in text and 'Taori et al. 2020' in text

    nll = table(text, 'Negative log-likelihood')
    assert nll['Zero-shot']['ID (imagenet)'] == f'{4 * (1 - 0.683):.3f}' and nll['Zero-shot']['objectnet'].endswith('†')
    for heading in ('Expected calibration error', 'Mean per-class accuracy', 'Top-5 accuracy', 'Sets', 'Runs'):
        assert f'\n## {heading}' in text
    assert '0123456789ab' in text and 'torch 2.15.0' in text

    pictures = re.findall(r'\]\((figures/.*?\.png)\)', text)
    assert len(pictures) == 6 + 6 + 2 and len(set(pictures)) == len(pictures)
    for picture in pictures:
        image = Image.open(out / picture)
        assert (
            image.width == pytest.approx(3.3 * 300, abs=1)
            and (out / picture).with_suffix('.pdf').read_bytes()[:4] == b'%PDF'
        )
        assert np.asarray(image.convert('L')).std() > 5

    rows = {(r['metric'], r['method']): r for r in csv.DictReader((out / 'accuracy.csv').open())}
    row = rows['Top-1 accuracy', 'FT']
    assert [float(row[key]) for key in ('OOD avg', 'OOD avg sd')] == pytest.approx(
        [mean(averages), stdev(averages)], abs=1e-3
    )
    assert float(rows['Top-1 accuracy', 'Zero-shot']['Eff. rob.']) == pytest.approx(average, abs=1e-3)
    assert '3 unreadable images' in row['notes']
    assert {r['metric'] for r in csv.DictReader((out / 'metrics.csv').open())} == {
        'Top-5 accuracy',
        'Mean per-class accuracy',
        'Negative log-likelihood',
        'Expected calibration error',
    }

    data = json.loads((out / 'report.json').read_text())
    assert data['accuracy']['methods']['FT']['mean']['OOD avg'] == pytest.approx(mean(averages))
    assert data['effective_robustness']['methods']['Zero-shot']['mean']['OOD avg'] == pytest.approx(average)
    assert [r['seed'] for r in data['runs']] == [None, 0, 1, 2] and data['runs'][1]['sets']['imagenet-r']['metrics'][
        'top1'
    ] == 65.6
    assert data['lines']['imagenet-v2']['slope'] == pytest.approx(0.923, abs=0.001)


def test_class_changes_are_means_over_seeds(runs, tmp_path, no_drawing):
    make_report([runs], tmp_path / 'out', compare=('zs', 'ft'))
    rows = list(csv.DictReader((tmp_path / 'out/class_change.csv').open()))
    assert len(rows) == 6 * 6 and {row['set'] for row in rows} == set(SETS)
    files = {
        m: [json.loads(path.read_text()) for path in sorted(runs.glob(f'{m}/**/metrics.json'))] for m in ('zs', 'ft')
    }
    means = {
        m: {s: {c: mean(f['sets'][s]['per_class'][c] for f in fs) for c in fs[0]['sets'][s]['per_class']} for s in SETS}
        for m, fs in files.items()
    }
    for row in rows:
        before, after = (means[m][row['set']][row['class']] for m in ('zs', 'ft'))
        assert [float(row[k]) for k in ('before', 'after', 'change')] == pytest.approx(
            [before, after, after - before], abs=0.06
        )
        in_distribution = means['ft']['imagenet'][row['class']] - means['zs']['imagenet'][row['class']]
        assert (
            float(row['change in distribution']) == pytest.approx(in_distribution, abs=0.06) and row['images'] == '100'
        )
    for name in SETS:
        changes = [float(row['change']) for row in rows if row['set'] == name]
        assert changes == sorted(changes)


def test_different_sets_give_no_average(runs, tmp_path, no_drawing):
    write_run(
        runs / 'lp/metrics.json',
        {k: ZERO_SHOT[k] for k in ('imagenet', 'imagenet-r')},
        method='lp',
        seed=0,
        missing={name: 'no folder' for name in SHIFTS if name != 'imagenet-r'},
    )
    make_report([runs], tmp_path / 'out')
    text = (tmp_path / 'out/report.md').read_text()
    row = table(text, 'Top-1 accuracy')['lp']
    assert (
        row['imagenet-r'] == '77.7' and row['OOD avg'] == '–' and row['objectnet'] == '–†' and row['Eff. rob.'] == '–'
    )
    assert 'lp: no OOD avg, not tested on imagenet-v2, imagenet-a, imagenet-sketch, objectnet.' in text
    assert '† imagenet-a: not tested, no folder (lp).' in text
    assert (
        table(text, 'Effective robustness')['lp']['imagenet-r']
        == f'{expected_robustness(ZERO_SHOT, ["imagenet-r"]):+.1f}'
    )
    # With the shifts that all have, there is one; the order is the given one.
    make_report([runs], tmp_path / 'out', shifts=['imagenet-r'])
    text = (tmp_path / 'out/report.md').read_text()
    assert table(text, 'Top-1 accuracy')['lp']['OOD avg'] == '77.7' and 'objectnet' not in text.split('## Sets')[0]


def test_a_set_that_was_missing_everywhere_marks_the_average(tmp_path, no_drawing):
    few = {k: ZERO_SHOT[k] for k in ('imagenet', 'imagenet-v2', 'imagenet-r')}
    write_run(tmp_path / 'a/metrics.json', few, missing={'objectnet': 'not there'})
    make_report([tmp_path / 'a'], tmp_path / 'out')
    text = (tmp_path / 'out/report.md').read_text()
    assert (
        table(text, 'Top-1 accuracy')['ft']['OOD avg'] == f'{(61.9 + 77.7) / 2:.1f}†'
        and '† objectnet: not tested, not there.' in text
    )


def test_own_reference_models(tmp_path, no_drawing):
    write_run(tmp_path / 'a/metrics.json', {'test': 90.0, 'v2': 85.0, 'r': 50.0})
    (tmp_path / 'line.csv').write_text('model,test,v2\n' + ''.join(f'm{i},{i},{i}\n' for i in (20, 50, 80)))
    make_report([tmp_path / 'a'], tmp_path / 'out', line_file=str(tmp_path / 'line.csv'))
    text = (tmp_path / 'out/report.md').read_text()
    robustness = table(text, 'Effective robustness')
    assert robustness['ft'] == {
        'Method': 'ft',
        'v2': '-5.0',
    }  # the line is y = x; there is none for r, nor for the average
    assert 'Eff. rob.' not in table(text, 'Top-1 accuracy')['ft'] and 'line.csv' in text
    assert 'ft: ID accuracy 90.0 is outside the 20.0 to 80.0 of the reference models; the line is extrapolated.' in text


def test_sets_without_reference_models_have_no_effective_robustness(tmp_path):
    write_run(tmp_path / 'a/metrics.json', {'test': 90.0, 'v2': 85.0})
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'effective_robustness.csv').write_text('of an earlier report')
    make_report([tmp_path / 'a'], out)
    assert (
        'ffective robustness' not in (out / 'report.md').read_text() and not (out / 'effective_robustness.csv').exists()
    )
    assert (out / 'figures/id_ood_v2.png').exists()


@pytest.mark.parametrize('accuracies, id_set', [({'test': 90.0}, 'test'), ({'v2': 80.0, 'r': 60.0}, 'test')])
def test_only_one_side(tmp_path, accuracies, id_set):
    write_run(
        tmp_path / 'a/metrics.json',
        accuracies,
        id_set=id_set,
        missing={} if id_set in accuracies else {'test': 'not there'},
    )
    make_report([tmp_path / 'a'], tmp_path / 'out')
    text = (tmp_path / 'out/report.md').read_text()
    assert all(f'{value:.1f}' in text for value in accuracies.values()) and not list(
        (tmp_path / 'out/figures').glob('id_ood*')
    )
    assert ('No run was tested on the in-distribution set test' in text) == (id_set not in accuracies)


def test_corruptions(tmp_path, no_drawing):
    metrics = dict(top1=40.0, mean_per_class=40.0, nll=2.0, ece=5.0, mce=75.5, ce_fog=70.0, ce_gaussian_noise=81.0)
    accuracies = {'imagenet': 80.0, 'imagenet-r': 60.0, 'imagenet-c': 40.0}
    write_run(tmp_path / 'a/metrics.json', accuracies, sets={'imagenet-c': dict(metrics=metrics)})
    make_report([tmp_path / 'a'], tmp_path / 'out')
    text = (tmp_path / 'out/report.md').read_text()
    assert table(text, 'Mean corruption error') == {'ft': {'Method': 'ft', 'imagenet-c': '75.5'}}
    assert table(text, 'Corruptions')['gaussian noise']['ft'] == '81.0'


def test_runs_that_were_not_tested_alike_are_named(runs, tmp_path, no_drawing):
    write_run(runs / 'b/metrics.json', ZERO_SHOT, method='b', sets={'imagenet-r': dict(transform=['Resize(256)'])})
    make_report([runs], tmp_path / 'out')
    text = (tmp_path / 'out/report.md').read_text()
    assert 'compare with care' in text and '- imagenet-r: different transforms: ' in text


def test_names_make_file_names(tmp_path):
    for i, name in enumerate(('CFMask (α=0.5)', 'CFMask [α=0.5]', 'a/b')):
        write_run(tmp_path / f'{i}/metrics.json', {'test': 90.0, 'v2': 80.0 - i}, method=name)
    make_report([tmp_path], tmp_path / 'out')
    files = sorted(path.name for path in (tmp_path / 'out/figures').glob('reliability*.png'))
    assert files == ['reliability_CFMask_α_0.5.png', 'reliability_CFMask_α_0.5_2.png', 'reliability_a_b.png']


@pytest.mark.parametrize(
    'source, options, error, message',
    [
        ('{}/nothing', {}, MissingFileError, 'nothing: there is no such folder or file'),
        ('{}', dict(compare=('zs', 'FT')), ConfigError, "--compare: there is no method 'FT', only more, ft, zs"),
        (
            '{}',
            dict(shifts=['imagenet-q']),
            ConfigError,
            'no run was tested on imagenet-q; the runs have imagenet-v2',
        ),
        ('{}', dict(shifts=['imagenet']), ConfigError, '--shifts: no run was tested on imagenet;'),
        ('A={}', {}, ConfigError, "two runs of 'A' with seed 0"),
        ('{}', dict(line_file='{}/line.csv'), ConfigError, 'its columns must be .* .imagenet. and .*; it has test, v2'),
        (
            '{}',
            dict(line_file='{}/few.csv'),
            ConfigError,
            'few.csv: reference models with accuracies on imagenet, imagenet-r: .*at least 3 models, got 1',
        ),
        ('{}', dict(line_file='{}/none.csv'), MissingFileError, 'none.csv: no such file'),
    ],
)
def test_bad_input(runs, tmp_path, source, options, error, message):
    write_run(runs / 'again/metrics.json', ZERO_SHOT, method='more', seed=0)
    (runs / 'line.csv').write_text('model,test,v2\na,1,2\nb,2,3\nc,4,5\n')
    (runs / 'few.csv').write_text('model,imagenet,imagenet-r\na,1,2\nb,2,\nc,4,\n')
    if 'line_file' in options:
        options = dict(line_file=options['line_file'].format(runs))
    with pytest.raises(error, match=message):
        make_report([source.format(runs)], tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()  # nothing is written unless everything fits together


def test_a_mistake_ends_in_one_line(tmp_path):
    done = run_script('tools/report.py', tmp_path / 'nothing')
    assert done.returncode == 1 and done.stderr == f'{tmp_path}/nothing: there is no such folder or file\n'


def test_a_file_of_an_earlier_version_has_the_new_names(tmp_path):
    """Runs of mmcfmask 0.1.0 and of this version are seeds of one method."""
    metrics = dict(top1=80.0, mean_per_class=80.0, nll=0.8, ece=5.0)
    for seed, (gate, crop, share, name) in enumerate(
        (
            ('gate', 'second_look', 'by_start', 'ft + gate and second look'),
            ('knn_gate', 'crop_scale', 'zero_shot_percent', 'ft + k-NN gate and relevance crop'),
        )
    ):
        sets = {name: dict(metrics={**metrics, share: 12.5}) for name in ('test', 'v2')}
        inference = {gate: True, crop: 0.9}
        accuracies = {'test': 80.0, 'v2': 80.0}
        write_run(tmp_path / f'{seed}/metrics.json', accuracies, method=name, seed=seed, inference=inference, sets=sets)
    contents = gather_contents([tmp_path])
    assert list(contents.methods) == ['ft + k-NN gate and relevance crop'] and len(contents.runs) == 2
    for run in contents.runs:
        assert run.content['inference'] == dict(knn_gate=True, crop_scale=0.9)
        assert run.sets['v2']['metrics']['zero_shot_percent'] == 12.5 and 'by_start' not in run.sets['v2']['metrics']
    write_run(tmp_path / 'other.json', accuracies, method='logit + gate')  # not a gate of this package
    assert list(gather_contents([tmp_path / 'other.json']).methods) == ['logit + gate']


def test_classes_that_were_not_recorded_cannot_be_compared(tmp_path, no_drawing):
    for name in 'ab':
        write_run(
            tmp_path / f'{name}/metrics.json',
            {'test': 90.0, 'v2': 80.0},
            method=name,
            sets={s: dict(per_class={}, reliability=None) for s in ('test', 'v2')},
        )
    with pytest.raises(ConfigError, match="'a' and 'b' share no set with accuracies of classes"):
        make_report([tmp_path], tmp_path / 'out', compare=('a', 'b'))
    make_report([tmp_path], tmp_path / 'out')
    assert 'Reliability' not in (tmp_path / 'out/report.md').read_text()


def test_out_that_is_a_file(runs, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(StorageError, match='file'):
        make_report([runs], tmp_path / 'file')
