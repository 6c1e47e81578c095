import math

import pytest
import torch
from forks import launch
from terms import NAMES, TEMPLATES, build, dot, train_a_little, unit

from mmcfmask.errors import ConfigError
from mmcfmask.models.losses.mpm_nce import MPMNCE, mpm_nce


def explicit(image, text, labels, tau, margin, smoothing):
    """The sums of the paper by loops, divided by the number of images."""
    count = len(labels)
    image, text = ([unit(row) for row in rows.tolist()] for rows in (image, text))
    positives = [[other for other in range(count) if labels[other] == label] for label in labels]

    def target(i, j):
        own = labels[i] == labels[j]
        if own:
            return (1 - smoothing) / len(positives[i])
        return smoothing / (count - len(positives[i]))

    def score(i, j):
        return math.exp((dot(image[i], text[j]) + (0 if labels[i] == labels[j] else margin)) / tau)

    total = 0.0
    for i in range(count):
        for j in range(count):
            total -= target(i, j) * math.log(score(i, j) / sum(score(i, k) for k in range(count)))
            total -= target(j, i) * math.log(score(j, i) / sum(score(k, i) for k in range(count)))
    return total / count


@pytest.mark.parametrize('margin, smoothing', [(0.0, 0.0), (0.05, 0.02), (0.3, 0.4)])
def test_equals_loop(margin, smoothing):
    torch.manual_seed(0)
    image, text, labels = torch.randn(6, 4), torch.nn.functional.normalize(torch.randn(6, 4), dim=1), [0, 1, 0, 2, 1, 0]
    found = mpm_nce(image, text, torch.tensor(labels), 5.0, margin, smoothing)
    assert found.item() == pytest.approx(explicit(image, text, labels, 0.2, margin, smoothing), rel=1e-5)


def test_images_of_one_label():
    """There are no negatives to share ε: the loss stays finite."""
    text = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    assert torch.isfinite(mpm_nce(torch.randn(3, 4), text, torch.zeros(3).long(), 100.0))


def test_step(tiny_pretrained, batch, clip):
    """Texts are prompts of the labels by the frozen text tower; the head is no part of the training."""
    model = build(tiny_pretrained, dict(type='MPMNCE', weight=0.5, smoothing=0.1), cls_weight=0.0)
    torch.manual_seed(8)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_mpm_nce'}
    whole, tokenizer = clip
    labels = [0, 2, 2, 1]
    torch.manual_seed(8)
    prompts = [TEMPLATES[i].format(NAMES[y]) for i, y in zip(torch.randint(3, (4,)).tolist(), labels)]
    with torch.no_grad():
        image, text = whole.encode_image(batch[0]), whole.encode_text(tokenizer(prompts))
        expected = explicit(image, text, labels, 1 / whole.logit_scale.exp().item(), 0.05, 0.1)
    assert losses['loss_mpm_nce'].item() == pytest.approx(0.5 * expected, rel=1e-4)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    train_a_little(model, batch)
    end = model.state_dict()
    assert start.keys() == end.keys() and not any(name.startswith('losses.') for name in end)
    assert torch.equal(end['head.fc.weight'], start['head.fc.weight'])
    assert not torch.equal(end['backbone.visual.proj'], start['backbone.visual.proj'])


def test_adapters_are_dropped_beside_it(tiny_pretrained, batch):
    """It compares images with texts, not two passes of the tower."""
    model = build(tiny_pretrained, dict(type='MPMNCE'), cls_weight=0.0, backbone=dict(r_adapter=dict(drop=0.5)))
    train_a_little(model, batch)
    for training, outputs in (True, 4), (False, 1):
        model.train(training)
        assert len({model.backbone(batch[0])[0].sum().item() for _ in range(4)}) == outputs


WORKER = """
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from mmcfmask.compat import start_process_group_without_gpu
from mmcfmask.models.losses.mpm_nce import MPMNCE

start_process_group_without_gpu('pytorch')
rank, world_size = dist.get_rank(), dist.get_world_size()
features, prompts, labels = torch.load(f'{sys.argv[1]}/batch.pt', weights_only=True)
own = slice(rank * len(labels) // world_size, (rank + 1) * len(labels) // world_size)
term = MPMNCE()
term.prompts, term.scale = prompts, 20.0
features = features[own].requires_grad_()
loss = term(SimpleNamespace(features=features, labels=labels[own]))['loss_mpm_nce']
loss.backward()
torch.save([loss.detach(), features.grad / world_size], f'{sys.argv[1]}/{rank}.pt')  # DDP has the mean
"""


def test_two_processes_compare_all_their_images(tmp_path):
    torch.manual_seed(0)
    features, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 0, 2, 1, 0])
    prompts = torch.nn.functional.normalize(torch.randn(3, 1, 4), dim=2)
    expected = mpm_nce(features, prompts[labels, 0], labels, 20.0)
    expected.backward()
    torch.save([features.detach(), prompts, labels], tmp_path / 'batch.pt')
    (tmp_path / 'worker.py').write_text(WORKER)
    done = launch(str(tmp_path / 'worker.py'), 2, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    losses, grads = zip(*(torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2)))
    for loss in losses:
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(torch.cat(grads), features.grad)


@pytest.mark.parametrize('wrong', [dict(margin=-0.1), dict(smoothing=1.0)])
def test_wrong_values(wrong):
    with pytest.raises(ConfigError, match='MPMNCE: margin'):
        MPMNCE(**wrong)
