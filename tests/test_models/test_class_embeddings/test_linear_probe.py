import numpy as np
import pytest
import torch

from mmcfmask.models.class_embeddings.linear_probe import fit_linear_probe, logistic_regression


def clouds(num=60, classes=3, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    centres = np.random.default_rng(9).normal(size=(classes, dim))
    return torch.from_numpy(0.7 * centres[labels] + rng.normal(size=(num, dim)) + 3).float(), torch.from_numpy(labels)


def objective_and_gradient(weight, bias, features, labels, strength):
    """½ ‖W‖² + C Σ CE, by loops, in float64."""
    weight, bias, features = (np.asarray(a, np.float64) for a in (weight, bias, features))
    value, grad_weight, grad_bias = 0.5 * (weight**2).sum(), weight.copy(), np.zeros_like(bias)
    for x, y in zip(features, labels.tolist()):
        logits = weight @ x + bias
        p = np.exp(logits - logits.max())
        p /= p.sum()
        value -= strength * np.log(p[y])
        for c in range(len(bias)):
            grad_weight[c] += strength * (p[c] - (c == y)) * x
            grad_bias[c] += strength * (p[c] - (c == y))
    return value, grad_weight, grad_bias


@pytest.mark.parametrize('strength', [1e-3, 0.1, 10.0])
def test_is_a_minimum_of_the_penalised_likelihood(strength, monkeypatch):
    monkeypatch.setattr('mmcfmask.models.class_embeddings.linear_probe.ROWS_PER_CHUNK', 7)
    features, labels = clouds()
    weight, bias = logistic_regression(features, labels, 3, strength, max_iter=500)
    value, grad_weight, grad_bias = objective_and_gradient(weight, bias, features, labels, strength)
    scale = strength * len(features)
    assert abs(grad_weight).max() < 1e-3 * scale and abs(grad_bias).max() < 1e-3 * scale
    # Strictly convex in W: worse in any direction.
    rng = np.random.default_rng(1)
    for _ in range(5):
        assert (
            objective_and_gradient(weight + 0.05 * rng.normal(size=(3, 5)), bias, features, labels, strength)[0] > value
        )
    assert not torch.isnan(weight).any() and weight.requires_grad is False


def test_strength_is_chosen_on_held_out_images_and_the_result_is_for_raw_features():
    features, labels = clouds(num=30)
    held_out, held_out_labels = clouds(num=200, seed=1)
    strengths = [1e-6, 1e-2, 1.0, 1e3]
    probe = fit_linear_probe(features, labels, held_out, held_out_labels, 3, strengths[::-1])

    mean, std = features.mean(), features.std()
    accuracies = []
    for strength in strengths:  # each from zero, on standardised features
        weight, bias = logistic_regression((features - mean) / std, labels, 3, strength, max_iter=2000)
        predicted = (((held_out - mean) / std) @ weight.T + bias).argmax(1)
        accuracies.append(100 * (predicted == held_out_labels).float().mean().item())
        if strength == probe.strength:
            expected = ((held_out - mean) / std) @ weight.T + bias
            torch.testing.assert_close(held_out @ probe.weight.T + probe.bias, expected, atol=2e-2, rtol=2e-2)
    assert probe.strength == strengths[int(np.argmax(accuracies))] and probe.accuracy == pytest.approx(
        max(accuracies), abs=0.5
    )
    assert min(accuracies) + 5 < max(accuracies) and probe.strength not in (
        strengths[0],
        strengths[-1],
    )  # the choice matters here
    predicted = (held_out @ probe.weight.T + probe.bias).argmax(1)
    assert 100 * (predicted == held_out_labels).float().mean().item() == pytest.approx(probe.accuracy, abs=1)


def test_of_equal_accuracies_the_surest_is_chosen():
    """Classes far apart: every strength ranks them right, and the strongest penalty with weights of almost 0."""
    features, labels = clouds(num=100)
    features += 20 * torch.nn.functional.one_hot(labels, 5)
    strengths = [1e-7, 1e-3, 1e-1, 1e4]
    probe = fit_linear_probe(features[:60], labels[:60], features[60:], labels[60:], 3, strengths)
    losses = [
        fit_linear_probe(features[:60], labels[:60], features[60:], labels[60:], 3, [strength])
        for strength in strengths
    ]
    assert {one.accuracy for one in losses} == {100.0} and probe.strength == strengths[
        int(np.argmin([one.nll for one in losses]))
    ]
    logits = features[60:].double() @ probe.weight.T.double() + probe.bias.double()
    expected = -np.mean(
        [row[label] - np.log(np.exp(row).sum()) for row, label in zip(logits.numpy(), labels[60:].tolist())]
    )
    assert probe.nll == pytest.approx(expected, rel=1e-3) and probe.nll < 0.1 < 1 < losses[0].nll


def test_equal_is_up_to_a_standard_error(monkeypatch):
    """Probes as if fitted, whose accuracies and cross-entropies are known: their logits are features of 1 and −1 times
    a scale."""
    scales = {1.0: 0.1, 2.0: 0.5, 3.0: 0.3, 4.0: 2.0}
    wrong = {1.0: 8, 2.0: 9, 3.0: 10, 4.0: 14}  # of 100; the standard error of 92 % is 2.7 %
    held_out, labels = torch.zeros(100, 4), torch.zeros(100, dtype=torch.long)
    for column, strength in enumerate(scales):
        held_out[:, column] = torch.where(torch.arange(100) < wrong[strength], -1.0, 1.0)
    features = torch.tensor([[1.0, -1.0, 1.0, -1.0]] * 3)  # of mean 0

    def fitted(features, labels, num_classes, strength, start=None):
        weight = torch.zeros(2, 4)
        weight[0, list(scales).index(strength)] = scales[strength] * std
        return weight, torch.zeros(2)

    std = features.std()
    monkeypatch.setattr('mmcfmask.models.class_embeddings.linear_probe.logistic_regression', fitted)
    losses = {
        s: (1 - wrong[s] / 100) * np.log1p(np.exp(-scales[s])) + wrong[s] / 100 * np.log1p(np.exp(scales[s]))
        for s in scales
    }
    best = fit_linear_probe(features, torch.zeros(3, dtype=torch.long), held_out, labels, 2, list(scales))
    assert sorted(losses, key=losses.get) == [4.0, 2.0, 3.0, 1.0] and best.strength == 2.0
    assert best.accuracy == pytest.approx(91) and best.nll == pytest.approx(losses[2.0], rel=1e-5)


def test_best_at_an_end_of_the_grid_is_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmcfmask.models.class_embeddings.linear_probe.print_log', lambda message, *args, **kwargs: said.append(message)
    )
    features, labels = clouds(num=30)
    held_out, held_out_labels = clouds(num=200, seed=1)
    for strengths, end in ([1e-6, 1.0], 'largest C of the list, 1:'), ([1.0, 1e3], 'smallest C of the list, 1:'):
        fit_linear_probe(features, labels, held_out, held_out_labels, 3, strengths)
        assert end in said.pop()
    fit_linear_probe(features, labels, held_out, held_out_labels, 3, [1e-6, 1e-2, 1.0, 1e3])
    fit_linear_probe(features, labels, held_out, held_out_labels, 3, [1.0])  # given, not chosen
    assert not said


def test_nothing_to_fit():
    features, labels = clouds()
    with pytest.raises(ValueError, match='0 held-out images'):
        fit_linear_probe(features, labels, features[:0], labels[:0], 3)
    with pytest.raises(ValueError, match='0 strengths'):
        fit_linear_probe(features, labels, features, labels, 3, [])


@pytest.mark.parametrize(
    'change, held_out, message',
    [
        (lambda x: x * float('nan'), False, 'features of the training images of a linear probe are not finite'),
        (lambda x: x * float('inf'), True, 'features of the held-out images of a linear probe are not finite'),
        (torch.ones_like, False, 'all features of a linear probe are equal'),
    ],
)
def test_features_that_cannot_be_right(change, held_out, message):
    x, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(x if held_out else change(x), labels, change(x) if held_out else x, labels, 2, [1.0])
