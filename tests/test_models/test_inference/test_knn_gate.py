import copy
from typing import ClassVar

import pytest
import torch
from mmpretrain.registry import DATASETS, MODELS

from mmcfmask.models.inference.knn_gate import KNNGate, class_similarity, conformal_threshold

PIPELINE = [dict(type='Resize', scale=32), dict(type='PackInputs')]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))


def shapes(split, size, **kwargs):
    return dict(type='ShapesDataset', split=split, size=size, pipeline=PIPELINE, **kwargs)


def build(pretrained, gate=True, **kwargs):
    """A classifier moved away from its pretrained weights, as by fine-tuning, after the gate was made."""
    gate = dict(dataset=shapes('train', 50), held_out=shapes('val', 40), k=3, level=0.3, **kwargs) if gate else None
    torch.manual_seed(2)
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
            head=dict(type='CLIPDistillHead', num_classes=10),
            knn_gate=gate,
        )
    )
    torch.manual_seed(5)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), start.eval()


def collated(items):
    return dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])


def test_similarity_to_the_kth_image_of_the_class():
    features, train = (torch.nn.functional.normalize(torch.randn(rows, 6), dim=1) for rows in (5, 30))
    labels, classes = torch.arange(30) % 3, torch.tensor([0, 2, 1, 1, 0])
    for k in (1, 4, 10):
        expected = []
        for x, c in zip(features, classes):
            members = [y.tolist() for y, label in zip(train, labels) if label == c]
            expected.append(sorted((sum(a * b for a, b in zip(x.tolist(), y)) for y in members), reverse=True)[k - 1])
        for amp in (False, True):
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
                torch.testing.assert_close(
                    class_similarity(features, classes, train, labels, k), torch.tensor(expected)
                )


@pytest.mark.parametrize(
    'images, level', [(49, 0.02), (50, 0.02), (99, 0.02), (500, 0.05), (19, 0.05), (20, 0.3), (7, 0.5)]
)
def test_threshold_is_that_of_the_p_value(images, level):
    held_out = torch.randn(images)
    threshold = conformal_threshold(held_out, level)
    for x in [*held_out.tolist(), *torch.randn(50).tolist(), -9.0, 9.0]:
        p = (1 + sum(value <= x for value in held_out.tolist())) / (images + 1)
        assert (x >= threshold) == (p > level + 1e-9), (x, p)


def test_few_of_the_same_distribution_fall_below_the_threshold():
    below = [(torch.randn(100) < conformal_threshold(torch.randn(99), 0.1)).float().mean().item() for _ in range(200)]
    assert sum(below) / len(below) == pytest.approx(0.1, abs=0.01)


def test_too_few_held_out_images():
    with pytest.raises(ValueError, match='level=0.02 needs at least 49 held-out images, but there are 48'):
        conformal_threshold(torch.randn(48), 0.02)
    conformal_threshold(torch.randn(49), 0.02)


def test_scores_are_those_of_one_model_or_the_other(tiny_pretrained):
    model, start = build(tiny_pretrained)

    def features(tower, dataset):
        items = list(DATASETS.build(dataset))
        with torch.no_grad():
            z = tower.backbone(tower.data_preprocessor(collated(items))['inputs'])[0]
        return z, z / z.norm(dim=1, keepdim=True), [int(item['data_samples'].gt_label) for item in items]

    def similarity(x, label):
        return sorted(((x @ y).item() for y, other in zip(train, train_labels) if other == label), reverse=True)[2]

    _, train, train_labels = features(start, shapes('train', 50))
    with torch.no_grad():
        seen = model.head((features(model, shapes('val', 40))[0],)).argmax(
            dim=1
        )  # the classes that the model sees, right or not
    held_out = [similarity(x, label) for x, label in zip(features(start, shapes('val', 40))[1], seen)]
    chosen = []
    for split in ('test', 'sketch'):
        items = list(DATASETS.build(shapes(split, 30)))
        z0, x0, _ = features(start, shapes(split, 30))
        z, *_ = features(model, shapes(split, 30))
        with torch.no_grad():
            tuned, pretrained = model.head((z,)), start.head((z0,))
            predicted = model.test_step(collated(items))
        for index, sample in enumerate(predicted):
            p = (1 + sum(value <= similarity(x0[index], tuned[index].argmax()) for value in held_out)) / 41
            expected = (tuned if p > 0.3 else pretrained)[index]
            chosen.append(p > 0.3)
            assert sample.answered_by_zero_shot is (p <= 0.3)
            torch.testing.assert_close(sample.pred_logits, expected, rtol=1e-4, atol=1e-4)
            assert int(sample.pred_label) == int(expected.argmax()) and sample.pred_score.sum() == pytest.approx(
                1, abs=1e-4
            )
    assert 2 < sum(chosen) < 58  # both kinds were there


def test_start_is_not_part_of_the_model(tiny_pretrained):
    (model, start), (plain, _) = build(tiny_pretrained), build(tiny_pretrained, gate=False)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert copy.deepcopy(model).knn_gate is model.knn_gate  # a moving average of weights needs no second one
    assert not any(parameter.requires_grad for parameter in model.knn_gate.parameters())
    kept = model.knn_gate.zero_shot.backbone.state_dict()
    model.train()
    assert not model.knn_gate.zero_shot.training
    assert all(torch.equal(kept[name], value) for name, value in start.backbone.state_dict().items())
    model.double()
    assert model.knn_gate.train_features.dtype == model.knn_gate.zero_shot.backbone.visual.proj.dtype == torch.float64


@pytest.mark.parametrize('crop_scale', [None, 0.9])
def test_choice_is_the_same_under_autocast(crop_scale, tiny_pretrained):
    model, _ = build(tiny_pretrained)
    data = collated(list(DATASETS.build(shapes('test', 30))))
    images = model.data_preprocessor(data)['inputs']
    logits, threshold = torch.randn(30, 10), model.knn_gate.threshold(model, model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rounded = model.knn_gate(images, logits, threshold, crop_scale)
    for low, full in zip(rounded, model.knn_gate(images, logits, threshold, crop_scale)):
        assert torch.equal(low, full)


def test_features_are_read_once(tiny_pretrained, monkeypatch):
    model, _ = build(tiny_pretrained)
    monkeypatch.setattr('mmcfmask.models.class_embeddings.features.image_features', None)
    again, _ = build(tiny_pretrained)
    assert torch.equal(again.knn_gate.held_out_features, model.knn_gate.held_out_features) and torch.equal(
        again.knn_gate.train_features, model.knn_gate.train_features
    )


def noisy_world(error, images, generator):
    """L2-normalised features of 4 classes, their labels, and what a model sees in them that errs at a rate."""
    labels = torch.randint(4, (images,), generator=generator)
    features = torch.randn(images, 8, generator=generator) * 0.3 + 2 * torch.eye(4, 8)[labels]
    seen = torch.where(
        torch.rand(images, generator=generator) < error, torch.randint(4, (images,), generator=generator), labels
    )
    return torch.nn.functional.normalize(features, dim=1), labels, seen


@pytest.mark.parametrize('error', [0.0, 0.05, 0.3])
def test_level_is_held_for_models_that_err(error):
    """Of images of the training distribution the start answers for ``level``, however often the fine-tuned model is
    wrong."""
    generator, level, rates = torch.Generator().manual_seed(3), 0.05, []
    for _ in range(60):
        train, train_labels, _ = noisy_world(0.0, 200, generator)
        held_out, _, seen = noisy_world(error, 199, generator)
        gate = KNNGate(dict(type='A'), dict(type='B'), k=5, level=level)
        gate.train_features, gate.train_labels, gate.held_out_features, gate.thresholds = (
            train,
            train_labels,
            held_out,
            {},
        )
        threshold = gate.threshold(*reading(gate, seen))
        images, _, classes = noisy_world(error, 200, generator)
        rates.append((class_similarity(images, classes, train, train_labels, 5) < threshold).float().mean().item())
    assert sum(rates) / len(rates) == pytest.approx(level, abs=0.012)


class AsTheyAre:
    """A data preprocessor that does nothing."""

    relevance: ClassVar = {}

    def __call__(self, batch):
        return dict(inputs=batch)


def reading(gate, seen):
    """A classifier and its scores for a gate whose held-out images are taken for these classes."""
    classifier = torch.nn.Linear(1, 1)
    classifier.crop_scale, classifier.data_preprocessor = None, AsTheyAre()
    gate.held_out = dict(type='HeldOutNumbers', number=len(seen))
    return classifier, lambda batch: torch.nn.functional.one_hot(seen[torch.tensor(batch)], 4)


@DATASETS.register_module()
class HeldOutNumbers(torch.utils.data.Dataset):
    """Images that are their own indices."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index >= self.number:
            raise IndexError
        return index


def test_threshold_is_that_of_the_weights_at_hand(tiny_pretrained):
    """Made once for every state of the model, as in WiSE-FT, which goes back and forth."""
    model, _ = build(tiny_pretrained)
    data = collated(list(DATASETS.build(shapes('test', 8))))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.test_step(data)
    model.test_step(data)
    assert len(model.knn_gate.thresholds) == 1
    with torch.no_grad():
        model.head.fc.weight.data.add_(torch.randn_like(model.head.fc.weight))
    model.test_step(data)
    assert len(model.knn_gate.thresholds) == 2 and len(set(model.knn_gate.thresholds.values())) == 2
    model.load_state_dict(first)
    model.test_step(data)
    assert len(model.knn_gate.thresholds) == 2


@pytest.mark.parametrize(
    'gate, message',
    [
        (dict(k=0), r'k of at least 1 and level in \(0, 1\), but got k=0, level=0.3'),
        (dict(level=1.0), r'level in \(0, 1\), but got k=3, level=1'),
        (
            dict(k=6),
            r'knn_gate.k=6, but these 10 classes have fewer images in knn_gate.dataset: circle \(5\), square \(5\)',
        ),
        (dict(level=0.02), 'level=0.02 needs at least 49 held-out images, but there are 40'),
        (dict(held_out=shapes('train', 50)), 'knn_gate.dataset and knn_gate.held_out are the same'),
    ],
)
def test_mistakes(tiny_pretrained, gate, message):
    gate = {**dict(dataset=shapes('train', 50), held_out=shapes('val', 40), k=3, level=0.3), **gate}
    with pytest.raises(ValueError, match=message):
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=10),
                knn_gate=gate,
            )
        )
