import math

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.errors import ConfigError
from mmcfmask.models.head import check_head, read_labels
from mmcfmask.models.losses import knowledge_distillation


def head(**kwargs):
    return MODELS.build(dict(type='CLIPDistillHead', num_classes=3, in_channels=4, **kwargs))


def test_starts_as_zero_shot():
    embeddings = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    module = head()
    module.init_class_weights(embeddings, 50.0)
    features = torch.randn(2, 4)
    logits = module((features,))
    for i in range(2):
        for c in range(3):
            cosine = (features[i] @ embeddings[c] / features[i].norm()).item()
            assert logits[i, c].item() == pytest.approx(50 * cosine, rel=1e-4, abs=1e-4)
    assert module.fc.weight.requires_grad and module.fc.bias.requires_grad


def test_logits_are_float32_under_autocast():
    module = head()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert module((torch.randn(2, 4).bfloat16(),)).dtype == torch.float32


def test_losses_and_weights():
    module = head(distill_weight=7.0, cls_weight=2.0)
    samples = [DataSample().set_gt_label(label) for label in (0, 2)]
    features = (torch.randn(2, 4),)
    expected = torch.nn.functional.cross_entropy(module(features), torch.tensor([0, 2]))
    assert module.loss(features, samples)['loss_cls'].item() == pytest.approx(2 * expected.item(), rel=1e-5)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    assert module.distill_loss(a, b, None)['loss_distill'].item() == pytest.approx(
        7 * ((a - b) ** 2).mean().item(), rel=1e-5
    )


def test_temperature_of_the_cross_entropy_equals_loop():
    module = head(cls_temperature=10.0)
    logits, labels = torch.randn(2, 3) * 20, [0, 2]
    total = 0.0
    for row, label in zip(logits.tolist(), labels):
        powers = [math.exp(x / 10) for x in row]
        total -= math.log(powers[label] / sum(powers))
    samples = [DataSample().set_gt_label(label) for label in labels]
    assert module.loss_by_logits(logits, samples)['loss_cls'].item() == pytest.approx(total / 2, rel=1e-5)
    features = (torch.randn(2, 4),)
    torch.testing.assert_close(
        torch.stack([sample.pred_logits for sample in module.predict(features)]), module(features)
    )


def test_knowledge_distillation_uses_the_zero_shot_head():
    from mmcfmask.models.teacher import OpenCLIPTeacher

    module = head(distill='logits', distill_weight=30.0, temperature=10.0)
    teacher = OpenCLIPTeacher()
    teacher.setup(torch.nn.Identity(), None, module)
    zero_shot = module.fc.weight.detach().clone()
    with torch.no_grad():
        module.fc.weight.mul_(2).add_(0.1)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    unit = torch.nn.functional.normalize
    expected = 30 * knowledge_distillation(module((a,)), unit(b, dim=1) @ zero_shot.T + teacher.head.fc.bias, 10.0)
    torch.testing.assert_close(module.distill_loss(a, b, teacher)['loss_distill'], expected)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(distill='features'), 'unknown distill'),
        (dict(distill=None), 'model.head.distill=None is no longer needed'),
        (dict(temperature=0.0), 'temperature=0'),
        (dict(cls_temperature=0.0), 'cls_temperature=0'),
        (dict(distill_weight=-1.0), 'loss weights'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)


def test_wrong_embeddings():
    with pytest.raises(ValueError, match='num_classes=3, but .*gives 5 classes: set model.head.num_classes=5'):
        head().init_class_weights(torch.randn(5, 4), 100.0)
    with pytest.raises(ValueError, match='width 6'):
        head().init_class_weights(torch.randn(3, 6), 100.0)


def test_predict_gives_the_logits():
    module = head().eval()
    features = (torch.randn(2, 4),)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        first, second = module.predict((features[0].bfloat16(),))
    assert first.pred_logits.dtype == torch.float32 and first.pred_logits.shape == (3,)
    first, second = module.predict(features, [DataSample(), DataSample().set_gt_label(1)])
    assert (
        torch.equal(torch.stack([first.pred_logits, second.pred_logits]), module(features))
        and not second.pred_logits.requires_grad
    )
    assert (
        torch.equal(second.pred_score, second.pred_logits.softmax(dim=0))
        and second.pred_label == second.pred_logits.argmax()
    )


@pytest.mark.parametrize(
    'options, trained', [(dict(), True), (dict(cls_weight=0.0), False), (dict(cls_weight=0.0, distill='logits'), True)]
)
def test_classifier_that_no_loss_sees_is_not_trained(options, trained):
    """Under DDP every parameter that requires a gradient must get one."""
    assert {parameter.requires_grad for parameter in head(**options).parameters()} == {trained}


def test_heads_of_other_kinds_are_refused():
    check_head(dict(type='CLIPDistillHead'))
    check_head(head())
    for other, name in (
        (dict(type='LinearClsHead', num_classes=3), "'LinearClsHead'"),
        (dict(type='MultiLabelLinearClsHead', num_classes=3), "'MultiLabelLinearClsHead'"),
        (dict(num_classes=3), 'None'),
        (None, 'None'),
        (torch.nn.Linear(1, 1), "'Linear'"),
    ):
        with pytest.raises(ConfigError, match=f"model.head.type={name}: a CounterfactualClassifier needs 'CLIPDistil"):
            check_head(other)


def test_an_image_has_one_class():
    assert read_labels([DataSample().set_gt_label(2), DataSample().set_gt_label([0])]).tolist() == [2, 0]
    soft = DataSample(metainfo=dict(img_path='a.png')).set_gt_label(1).set_gt_score(torch.tensor([0.5, 0.5]))
    for sample, message in (
        (DataSample().set_gt_label([0, 2]), r'a training image has the labels \[0, 2\], but relevance'),
        (DataSample(), r'has the labels \[\], but'),
        (soft, r'a.png has a soft label \(gt_score\), but .* one class per image'),
    ):
        with pytest.raises(ConfigError, match=message):
            read_labels([DataSample().set_gt_label(0), sample])
