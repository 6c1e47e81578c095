import csv
import math

import numpy as np
import pytest

from mmcfmask.evaluation import effective_robustness, fit_line, read_reference_models, reference_line, reference_points
from mmcfmask.evaluation.effective_robustness import REFERENCE_MODELS, logit, measured_sets, percent

SETS = ('imagenet', 'imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet')
# Images of each set that the shipped accuracies were measured on.
IMAGES = dict(zip(SETS, (50000, 10000, 30000, 7500, 50889, 18514)))


def slow_line(acc_id, acc_ood):
    """Slope and intercept by the textbook: covariance over variance, of log-odds."""
    x, y = ([math.log(a / (100 - a)) for a in values] for values in (acc_id, acc_ood))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)
    residuals = [b - (mean_y + slope * (a - mean_x)) for a, b in zip(x, y)]
    return slope, mean_y - slope * mean_x, 1 - sum(r * r for r in residuals) / sum((b - mean_y) ** 2 for b in y)


def sigmoid(z):
    return 100 / (1 + math.exp(-z))


@pytest.fixture
def testbed():
    rng = np.random.default_rng(0)
    acc_id = rng.uniform(40, 90, 30)
    return acc_id, percent(0.9 * logit(acc_id) - 0.7 + rng.normal(0, 0.1, 30))


def test_fit_is_least_squares_in_logits(testbed):
    line = fit_line(*testbed)
    assert (line.slope, line.intercept, line.r2) == pytest.approx(slow_line(*testbed))
    assert line.slope == pytest.approx(0.9, abs=0.1) and line.models == 30
    assert line.id_range == (min(testbed[0]), max(testbed[0]))


def test_logit_and_its_inverse():
    values = [0.1, 20.0, 50.0, 77.3, 99.9]
    assert logit(values) == pytest.approx([math.log(p / 100 / (1 - p / 100)) for p in values])
    assert percent(logit(values)) == pytest.approx(values)
    assert percent([-800.0, 800.0]) == pytest.approx([0, 100])  # no overflow
    assert list(logit([0, 100])) == [-math.inf, math.inf]


def test_effective_robustness_is_the_height_above_the_line(testbed):
    line = fit_line(*testbed)
    slope, intercept, _ = slow_line(*testbed)
    for acc_id, acc_ood in ((68.3, 58.4), (82.4, 63.3), (50, 10)):
        expected = acc_ood - sigmoid(intercept + slope * math.log(acc_id / (100 - acc_id)))
        assert effective_robustness(acc_id, acc_ood, line) == pytest.approx(expected)
    assert effective_robustness(70.0, line.predict(70.0), line) == pytest.approx(0)
    assert effective_robustness([70.0, 80.0], line.predict([70.0, 80.0]) + 3, line) == pytest.approx([3, 3])


def test_models_on_a_line_are_not_robust():
    acc_id = np.array([60.0, 70.0, 80.0, 90.0])
    acc_ood = percent(1.2 * logit(acc_id) - 1)
    line = fit_line(acc_id, acc_ood)
    assert (line.slope, line.intercept, line.r2) == pytest.approx((1.2, -1, 1))
    assert effective_robustness(acc_id, acc_ood, line) == pytest.approx([0] * 4, abs=1e-9)


def test_extreme_accuracies_of_a_tested_model_have_an_answer(testbed):
    line = fit_line(*testbed)
    assert effective_robustness(100, 80, line) == pytest.approx(-20)
    assert effective_robustness(0, 0, line) == pytest.approx(0)


@pytest.mark.parametrize(
    'acc_id, acc_ood, message',
    [
        ([60, 70], [50, 60], 'at least 3 models, got 2'),
        ([60, 70, 100], [50, 60, 70], 'got 100'),
        ([60, 70, 80], [50, 60, 0], 'got 0'),
        ([60, 70, 80], [50, 60, math.nan], 'got nan'),
        ([70, 70, 70], [50, 60, 65], 'same ID accuracy, 70'),
        ([60, 70, 80], [50, 60], 'same length'),
    ],
)
def test_bad_points(acc_id, acc_ood, message):
    with pytest.raises(ValueError, match=message):
        fit_line(acc_id, acc_ood)


# The file that comes with the package.


def test_shipped_models():
    models = read_reference_models()
    assert measured_sets(models) == SETS and len(models) == 85
    for name, accuracies in models.items():
        for set_name, accuracy in accuracies.items():
            correct = accuracy / 100 * IMAGES[set_name]  # a whole number of images
            assert abs(correct - round(correct)) < 6e-6 * IMAGES[set_name], (
                name,
                set_name,
            )  # written with three decimals
        assert accuracies['imagenet'] > accuracies['imagenet-v2'] > accuracies['objectnet']
    # Published top-1 accuracies (torchvision), and no model that has seen more than ImageNet.
    published = dict(alexnet=56.52, vgg16=71.59, resnet18=69.76, resnet50=76.13, resnet152=78.31, densenet121=74.43)
    assert {name: models[name]['imagenet'] for name in published} == pytest.approx(published, abs=0.01)
    more_data = ('clip', 'swsl', 'ssl', 'instagram', 'jft', '21k', 'noisy', 'bit-m')
    assert not [name for name in models if any(word in name.lower() for word in more_data)]
    assert 'imagenet-a' not in models['resnet50']


def test_shipped_file_names_its_source():
    comments = [line for line in REFERENCE_MODELS.read_text().splitlines() if line.startswith('#')]
    assert 'https://github.com/modestyachts/imagenet-testbed' in ' '.join(comments) and 'MIT' in ' '.join(comments)


@pytest.mark.parametrize('shift, r2', list(zip(SETS[1:], (0.99, 0.85, 0.75, 0.85, 0.9))))
def test_shipped_lines(shift, r2):
    line = reference_line(read_reference_models(), 'imagenet', [shift])
    rows = [row for row in csv.DictReader(x for x in REFERENCE_MODELS.open() if not x.startswith('#')) if row[shift]]
    expected = slow_line([float(row['imagenet']) for row in rows], [float(row[shift]) for row in rows])
    assert (line.slope, line.intercept, line.r2) == pytest.approx(expected)
    assert line.r2 > r2 and line.models >= 80


def test_line_of_the_average_uses_models_with_all_shifts():
    models = read_reference_models()
    points = reference_points(models, 'imagenet', SETS[1:])
    complete = [a for a in models.values() if len(a) == 6]
    assert points == pytest.approx(np.array([(a['imagenet'], sum(a[s] for s in SETS[1:]) / 5) for a in complete]))
    assert reference_line(models, 'imagenet', SETS[1:]).models == len(complete) == 79


# Files of the user's own.

GOOD = 'model,test,sketch\na,60,50\nb,70,60\nc,80,\nd,90,85\n'


def test_own_file(tmp_path):
    path = tmp_path / 'line.csv'
    path.write_text('\ufeff# mine\n\n' + GOOD.replace('a,60,50', '"a, the first", 60 ,50'), encoding='utf-8')
    models = read_reference_models(path)
    assert models['a, the first'] == dict(test=60, sketch=50) and models['c'] == dict(test=80)
    assert reference_line(models, 'test', ['sketch']).models == 3
    assert reference_line(models, 'test', ['other']) is None


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'no header'),
        ('# only a comment\n', 'no header'),
        ('name,test,sketch\na,60,50\n', r'line 1: the header must have "model".*it has name, test, sketch'),
        ('model,test\na,60\n', 'line 1: the header must have "model" and at least two sets'),
        ('model,test,test\na,60,50\n', 'line 1: column names must be there once each'),
        (GOOD + 'e,95\n', 'line 6: 2 cells under 3 columns'),
        (GOOD + 'a,95,90\n', "line 6: model 'a' is there twice"),
        (GOOD + ',95,90\n', 'line 6: no name of a model'),
        (GOOD + 'e,0,90\n', "line 6: 'e' on 'test': accuracy must be a percentage above 0 and below 100 .*got '0'"),
        (GOOD + 'e,95,100\n', "line 6: 'e' on 'sketch'.*got '100'"),
        (GOOD + 'e,95,n/a\n', "line 6: 'e' on 'sketch'.*got 'n/a'"),
        (GOOD + 'e,95,nan\n', "line 6: 'e' on 'sketch'.*got 'nan'"),
        ('model,test,sketch\na,60,50\nb,70,60\n', '2 models; a line needs at least 3'),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / 'line.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_reference_models(path)
    assert str(path) in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.csv: no such file'):
        read_reference_models(tmp_path / 'nothing.csv')
    (tmp_path / 'binary.csv').write_bytes(b'\x89PNG\xff')
    with pytest.raises(ValueError, match='not a text file'):
        read_reference_models(tmp_path / 'binary.csv')


def test_too_few_models_with_both_sets():
    models = dict(a=dict(test=60, sketch=50), b=dict(test=70, sketch=60), c=dict(test=80), d=dict(sketch=3))
    with pytest.raises(
        ValueError, match='reference models with accuracies on test, sketch: .*at least 3 models, got 2'
    ):
        reference_line(models, 'test', ['sketch'])
