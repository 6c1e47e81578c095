"""VRF, against the paper's three steps written with loops."""

import copy
import math

import pytest
import torch
from mmpretrain.registry import DATASETS, MODELS
from test_knn_gate import collated, shapes

from mmcfmask.errors import ConfigError
from mmcfmask.models.inference.vrf import confidence_temperature, failure_distance, fine_tuned_weight


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))


def build(pretrained, move=0.3, **kwargs):
    """A classifier moved away from its pretrained weights, as by fine-tuning, after VRF was made; and its start."""
    torch.manual_seed(2)
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
            head=dict(type='CLIPDistillHead', num_classes=10),
            knn_gate=dict(type='VRF', dataset=shapes('train', 60), held_out=shapes('val', 40), **kwargs),
        )
    )
    start = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(move * torch.randn_like(parameter))
    return model.eval(), start.eval()


def test_distance_equals_loop():
    features, failures = (torch.nn.functional.normalize(torch.randn(rows, 6), dim=1) for rows in (5, 30))
    for k in (1, 4, 30):
        expected = [
            sorted(sum((a - b) ** 2 for a, b in zip(x, y)) for y in failures.tolist())[k - 1] for x in features.tolist()
        ]
        torch.testing.assert_close(failure_distance(features, failures, k), torch.tensor(expected))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            torch.testing.assert_close(failure_distance(features, failures, k), torch.tensor(expected))
    assert failure_distance(features, failures[:0], 1).tolist() == [math.inf] * 5
    assert (failure_distance(failures, failures, 1) >= 0).all()


def test_weight_equals_the_formula():
    for distance in (0.0, 0.7, 1.5, 3.9, math.inf):
        expected = 1 / (1 + math.exp((min(distance, 50) - 1.5) / 0.6))
        assert fine_tuned_weight(torch.tensor(distance), 1.5, 0.6).item() == pytest.approx(expected, abs=1e-6)
    assert fine_tuned_weight(torch.tensor(1.5), 1.5, 0.6) == 0.5
    assert fine_tuned_weight(torch.tensor(math.inf), 1.5, 0.6) == 0  # no failure set: the pretrained model answers


@pytest.mark.parametrize('scale', [0.5, 2.0, 8.0])
def test_confidence_is_the_accuracy(scale):
    """Against a search over many temperatures."""
    torch.manual_seed(0)
    logits, labels = torch.randn(300, 5), torch.randint(5, (300,))
    logits = scale * (logits + 1.5 * torch.nn.functional.one_hot(labels, 5))
    accuracy = sum(int(row.argmax() == label) for row, label in zip(logits, labels)) / 300

    def gap(temperature):
        confidences = [max(math.exp(value / temperature) for value in row) for row in logits.tolist()]
        sums = [sum(math.exp(value / temperature) for value in row) for row in logits.tolist()]
        return abs(sum(a / b for a, b in zip(confidences, sums)) / 300 - accuracy)

    found = confidence_temperature(logits, labels)
    best = min((0.1 * 1.05**step for step in range(95)), key=gap)
    assert found == pytest.approx(best, rel=0.05) and gap(found) < 1e-3


def test_temperature_stays_in_its_range():
    right = torch.eye(4) * 0.01
    assert confidence_temperature(right, torch.arange(4)) == pytest.approx(0.1)  # accuracy 1 wants certainty
    assert confidence_temperature(right * 1e4, torch.arange(4).roll(1)) == pytest.approx(10)  # and 0 wants none


def test_scores_are_those_of_the_paper(tiny_pretrained):
    model, start = build(tiny_pretrained, a=0.4, b=0.1, k_share=0.1)

    def run(tower, dataset):
        items = list(DATASETS.build(dataset))
        with torch.no_grad():
            z = tower.backbone(tower.data_preprocessor(collated(items))['inputs'])[0]
            return z / z.norm(dim=1, keepdim=True), tower.head((z,)), [int(i['data_samples'].gt_label) for i in items]

    def fitted(tower):
        _, logits, labels = run(tower, shapes('val', 40))
        return confidence_temperature(logits, torch.tensor(labels))

    features, logits, labels = run(model, shapes('train', 60))
    _, before, _ = run(start, shapes('train', 60))
    failures = [
        z for z, row, row0, y in zip(features, logits, before, labels) if int(row.argmax()) == y != int(row0.argmax())
    ]
    k = max(1, round(0.1 * len(failures)))
    assert 0 < len(failures) < 30
    temperature, temperature0 = fitted(model), fitted(start)
    weights = []
    for split in ('test', 'sketch'):
        z, logits, _ = run(model, shapes(split, 30))
        _, l0, _ = run(start, shapes(split, 30))
        with torch.no_grad():
            predicted = model.test_step(collated(list(DATASETS.build(shapes(split, 30)))))
        for index, sample in enumerate(predicted):
            distance = sorted(sum((a - b) ** 2 for a, b in zip(z[index], other)).item() for other in failures)[k - 1]
            w = 1 / (1 + math.exp((distance - 0.4) / 0.1))
            p = w * (logits[index] / temperature).softmax(0) + (1 - w) * (l0[index] / temperature0).softmax(0)
            weights.append(w)
            torch.testing.assert_close(sample.pred_logits.exp(), p, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(sample.pred_score, p, rtol=1e-3, atol=1e-5)
            assert int(sample.pred_label) == int(p.argmax())
            assert sample.mixed_weights.tolist() == pytest.approx([w, 1 - w], abs=1e-4)
    assert min(weights) < 0.4 and max(weights) > 0.6


def test_without_a_failure_the_pretrained_model_answers(tiny_pretrained):
    """A model that has not moved has mended nothing."""
    model, start = build(tiny_pretrained, move=0.0)
    data = collated(list(DATASETS.build(shapes('test', 8))))
    with torch.no_grad():
        expected = start(start.data_preprocessor(copy.deepcopy(data))['inputs']) / model.knn_gate.zero_shot_temperature
        predicted = model.test_step(data)
    assert not len(model.knn_gate.fit(model).failures)
    for sample, logits in zip(predicted, expected):
        torch.testing.assert_close(sample.pred_logits, logits.log_softmax(0), rtol=1e-4, atol=1e-4)
        assert sample.mixed_weights.tolist() == [0, 1]


def test_fitted_once_for_the_weights_at_hand(tiny_pretrained):
    model, _ = build(tiny_pretrained)
    data = collated(list(DATASETS.build(shapes('test', 4))))
    for _ in range(2):
        model.test_step(copy.deepcopy(data))
    with torch.no_grad():
        model.head.fc.weight.add_(torch.randn_like(model.head.fc.weight))
    model.test_step(copy.deepcopy(data))
    assert len(model.knn_gate.fits) == 2
    assert not any('knn_gate' in name for name in model.state_dict())
    model.double()
    assert not model.knn_gate.fits and model.knn_gate.zero_shot.backbone.visual.proj.dtype == torch.float64


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(b=0.0), r'VRF needs b above 0 and k_share in \(0, 1\), but got b=0, k_share=0.001'),
        (dict(held_out=shapes('train', 60)), 'knn_gate.dataset and knn_gate.held_out are the same'),
        (dict(crop_scale=0.9), 'VRF predicts from the whole image: leave out --relevance-crop'),
    ],
)
def test_mistakes(settings, message, tiny_pretrained):
    crop_scale = settings.pop('crop_scale', None)
    gate = {**dict(type='VRF', dataset=shapes('train', 60), held_out=shapes('val', 40)), **settings}
    with pytest.raises(ConfigError, match=message):
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=10),
                knn_gate=gate,
                crop_scale=crop_scale,
            )
        )
