import copy
import gc

import open_clip
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.counterfactual import multi_donors, single_donors
from mmcfmask.counterfactual.reference import (
    explicit_features,
    explicit_losses,
    explicit_mask,
    explicit_refill,
    explicit_relevance,
)
from mmcfmask.models import OpenCLIPTeacher
from mmcfmask.models.losses import base

MASKS, FILLS = ('object', 'context', 'random'), ('none', 'single', 'multi')


def build(pretrained, teacher=True, head=None, preprocessor=None, loss='CounterfactualDistillation', **backbone):
    torch.manual_seed(2)
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained, **backbone),
            head=dict(type='CLIPDistillHead', num_classes=5, **(head or {})),
            teacher=dict(type='OpenCLIPTeacher') if teacher is True else teacher or None,
            losses=[dict(type=loss)] if teacher else [],
            data_preprocessor=preprocessor,
        )
    )
    return model.train()


def move_away(model):
    """Change the student so that it differs from the teacher."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num() * torch.randn_like(parameter))


@pytest.fixture
def batch():
    torch.manual_seed(3)
    labels = [0, 3, 3, 1]
    return torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(label) for label in labels], torch.tensor(labels)


def naive_losses(model, images, labels, preprocessor):
    """The published step: separate forwards, explicit attention, full recursion. Random numbers are drawn as the fast
    code draws them."""
    student, teacher = model.backbone.visual, model.teacher.backbone.visual
    kind, fill, value = preprocessor.mask, preprocessor.fill, preprocessor.value

    def classify(z):
        return F.linear(z / z.norm(dim=-1, keepdim=True), model.head.fc.weight, model.head.fc.bias)

    if kind == 'random' and fill == 'none':
        order = torch.rand(4, 16).argsort(dim=1).argsort(dim=1)
        kept = torch.stack([(row < int(16 * (1 - value))).nonzero()[:, 0] for row in order])
        return explicit_losses(student, teacher, classify, images, labels, images, kept=kept)
    if kind == 'random':
        mask = torch.rand(4, 4, 4) < value
    else:
        mask = explicit_mask(explicit_relevance(student, classify, images, labels), kind, value)
    if fill == 'none':
        return explicit_losses(student, teacher, classify, images, labels, images, hidden=mask)
    donors = single_donors(4)[:, None, None].expand(4, 4, 4) if fill == 'single' else multi_donors((4, 4, 4))
    return explicit_losses(student, teacher, classify, images, labels, explicit_refill(images, mask, donors))


@pytest.mark.parametrize('fill', FILLS)
@pytest.mark.parametrize('mask', MASKS)
def test_losses_and_gradients_equal_the_naive_step(tiny_pretrained, batch, mask, fill):
    images, samples, labels = batch
    model = build(tiny_pretrained, preprocessor=dict(mask=mask, fill=fill))
    move_away(model)
    torch.manual_seed(11)
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    torch.manual_seed(11)
    expected_cls, expected_distill = naive_losses(model, images, labels, model.data_preprocessor)
    (expected_cls + expected_distill).backward()
    assert set(losses) == {'loss_cls', 'loss_distill'} and losses['loss_distill'] > 0
    torch.testing.assert_close(losses['loss_cls'], expected_cls)
    torch.testing.assert_close(losses['loss_distill'], expected_distill, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(
            grads[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_mmpretrain_tower_takes_the_same_step(tiny_pretrained, batch):
    from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain

    for mask, fill in [('object', 'single'), ('object', 'none'), ('random', 'none')]:
        ours = build(tiny_pretrained, preprocessor=dict(mask=mask, fill=fill))
        state = open_clip_to_mmpretrain(ours.backbone.visual.state_dict())
        theirs = MODELS.build(
            dict(
                type='CounterfactualClassifier',
                **mmpretrain_config('tiny-vit'),
                head=dict(type='CLIPDistillHead', num_classes=5),
                data_preprocessor=dict(mask=mask, fill=fill),
            )
        ).train()
        theirs.load_state_dict(state, strict=False)
        teacher = MODELS.build(dict(type='OpenCLIPTeacher'))
        teacher.setup(theirs.backbone, theirs.neck)
        theirs._set_frozen(teacher=teacher)
        theirs.losses.append(MODELS.build(dict(type='CounterfactualDistillation')))
        move_away(ours)
        theirs.load_state_dict(open_clip_to_mmpretrain(ours.backbone.visual.state_dict()), strict=False)
        theirs.head.load_state_dict(ours.head.state_dict())
        results = []
        for model in (ours, theirs):
            torch.manual_seed(11)
            results.append(model(*batch[:2], mode='loss'))
        for name, value in results[0].items():
            torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)


def test_plain_fine_tuning_and_unmasked_distillation(tiny_pretrained, batch):
    images, samples, labels = batch
    plain = build(tiny_pretrained, teacher=False)
    losses = plain(images, samples, mode='loss')
    assert set(losses) == {'loss_cls'}
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(plain(images), labels))

    unmasked = build(tiny_pretrained, loss='Distillation')
    move_away(unmasked)
    losses = unmasked(images, samples, mode='loss')
    difference = explicit_features(unmasked.backbone.visual, images) - explicit_features(
        unmasked.teacher.backbone.visual, images
    )
    torch.testing.assert_close(losses['loss_distill'], 30 * (difference**2).mean())


def test_relevance_does_not_change_logits_or_gradients_of_the_first_loss(tiny_pretrained, batch):
    images, samples, _ = batch
    with_map, without = build(tiny_pretrained), build(tiny_pretrained, teacher=False)
    without.load_state_dict(with_map.state_dict())
    with_map(images, samples, mode='loss')['loss_cls'].backward()
    without(images, samples, mode='loss')['loss_cls'].backward()
    for (name, a), b in zip(with_map.named_parameters(), without.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_memory_does_not_grow(tiny_pretrained, batch):
    model = build(tiny_pretrained)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        sum(model(*batch[:2], mode='loss').values()).backward()
        optimizer.step()
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    step()
    counts = {step() for _ in range(5)}
    assert len(counts) == 1


def test_teacher_stays_out_of_everything(tiny_pretrained, batch):
    model = build(tiny_pretrained)
    before = copy.deepcopy({**model.teacher.state_dict()})
    own = {name for name, _ in model.named_parameters()}
    assert not any(
        'teacher' in name for name in own | set(model.state_dict()) | {name for name, _ in model.named_modules()}
    )
    average = ExponentialMovingAverage(model)
    assert set(average.module.state_dict()) == set(model.state_dict())
    assert average.module.teacher is model.teacher  # shared, not copied

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model(*batch[:2], mode='loss').values()).backward()
        optimizer.step()
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters())
    after = model.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(model.backbone.visual.proj, model.teacher.backbone.visual.proj)

    model.double()
    assert {parameter.dtype for parameter in model.teacher.parameters()} == {torch.float64}
    model.to('meta')
    assert {parameter.device.type for parameter in model.teacher.parameters()} == {'meta'}


def test_teacher_of_the_same_checkpoint_is_not_loaded_again(tiny_pretrained, monkeypatch):
    import mmcfmask.models.towers.backbone as module

    loads = []
    original = module.load_image_tower
    monkeypatch.setattr(
        module, 'load_image_tower', lambda *args, **kwargs: loads.append(args) or original(*args, **kwargs)
    )
    for teacher in (
        dict(type='OpenCLIPTeacher'),
        dict(type='OpenCLIPTeacher', model_name='tiny-vit', pretrained=tiny_pretrained),
    ):
        loads.clear()
        model = MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=5),
                teacher=teacher,
                losses=[dict(type='Distillation')],
            )
        )
        assert len(loads) == 1
        for student, teacher in zip(model.backbone.parameters(), model.teacher.backbone.parameters()):
            assert torch.equal(student, teacher) and student.data_ptr() != teacher.data_ptr()


def test_frozen_tower_is_frozen(tiny_pretrained, batch):
    model = build(tiny_pretrained, teacher=False, frozen=True)
    before = copy.deepcopy(model.backbone.state_dict())
    weight = model.head.fc.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model(*batch[:2], mode='loss').values()).backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert not model.backbone.visual.training and not torch.equal(model.head.fc.weight, weight)


def test_inference_is_that_of_image_classifier(tiny_pretrained, batch):
    model = build(tiny_pretrained).eval()
    with torch.no_grad():
        logits = model(batch[0])
        predicted = model(*batch[:2], mode='predict')
    assert logits.shape == (4, 5)
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in predicted]), logits.softmax(dim=1))
    assert [sample.pred_label.item() for sample in predicted] == logits.argmax(dim=1).tolist()


def test_bad_input(tiny_pretrained, batch):
    wide = OpenCLIPTeacher()
    wide.setup = lambda *args: setattr(
        wide, 'backbone', MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit-wide'))
    )
    wide.neck, wide.is_pretrained_student = None, False
    with pytest.raises(ValueError, match='the teacher .* gives features of width 24, but the student gives width 16'):
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=5),
                teacher=wide,
                losses=[dict(type='Distillation')],
            )
        )
    with pytest.raises(ValueError, match='no model_name'):
        MODELS.build(dict(type='OpenCLIPTeacher', pretrained='openai'))
    with pytest.raises(ValueError, match='needs pretrained weights'):
        MODELS.build(dict(type='OpenCLIPTeacher', model_name='tiny-vit'))
    with pytest.raises(ValueError, match='CAMRefillDataPreprocessor'):
        build(tiny_pretrained, preprocessor=dict(type='ClsDataPreprocessor'))
    with pytest.raises(ValueError, match='at least 2 images'):
        build(tiny_pretrained)(batch[0][:1], batch[1][:1], mode='loss')
    model = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
        head=dict(type='CLIPDistillHead', num_classes=5),
    )
    for late in (dict(pretrained=tiny_pretrained), dict(init_cfg=dict(type='Pretrained', checkpoint=tiny_pretrained))):
        with pytest.raises(
            ValueError, match='after the teacher was copied from the student: use model.backbone.pretrained'
        ):
            MODELS.build({**model, **late})


def test_teacher_that_is_another_model(tiny_pretrained, tmp_path):
    other = open_clip.create_model('tiny-vit-fine')
    torch.save(other.state_dict(), tmp_path / 'fine.pt')
    teacher = dict(type='OpenCLIPTeacher', model_name='tiny-vit-fine', pretrained=str(tmp_path / 'fine.pt'))
    assert build(tiny_pretrained, teacher).teacher.backbone.patch_size == (4, 4)
    with pytest.raises(ValueError, match="'tiny-vit-fine' has no class embeddings of its own"):
        build(tiny_pretrained, teacher, head=dict(distill='logits'))
    for mask in MASKS:
        with pytest.raises(ValueError, match=r'has \(8, 8\) patches and the student \(4, 4\): use fill="single"'):
            build(tiny_pretrained, teacher, preprocessor=dict(mask=mask, fill='none'))


def test_hidden_patches_and_activation_checkpoints(tiny_pretrained, batch, monkeypatch):
    """Where patches are hidden in the attention, a recomputed forward pass would see them."""
    for mask in ('object', 'context'):
        with pytest.raises(ValueError, match='grad_checkpointing=True would compute it again without hiding'):
            build(tiny_pretrained, preprocessor=dict(mask=mask, fill='none'), grad_checkpointing=True)
    gradients = []
    for checkpointing in (False, True):  # random ones are dropped before the first block
        model = build(tiny_pretrained, preprocessor=dict(mask='random', fill='none'), grad_checkpointing=checkpointing)
        move_away(model)
        torch.manual_seed(4)
        sum(model(*batch[:2], mode='loss').values()).backward()
        gradients.append(model.backbone.visual.conv1.weight.grad)
    torch.testing.assert_close(*gradients)
    monkeypatch.setattr(base, 'after_position', lambda backbone: None)  # as in a tower that cannot drop tokens
    with pytest.raises(ValueError, match='grad_checkpointing=True would compute it again without hiding'):
        build(tiny_pretrained, preprocessor=dict(mask='random', fill='none'), grad_checkpointing=True)


def test_normalisation_of_the_weights(tiny_pretrained, monkeypatch):
    tags = dict(half=dict(hf_hub='org/repo/', mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-vit', tags)
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda cfg: tiny_pretrained)
    right = dict(mean=[127.5] * 3, std=[63.75] * 3)
    build('half', preprocessor=right)
    build('half')  # normalised in the pipeline
    with pytest.raises(ValueError, match=r"std is \[1.0, .*'half' were trained with std=\[63.75, 63.75, 63.75\]"):
        build('half', preprocessor=dict(right, std=[1.0] * 3))
    with pytest.raises(ValueError, match=r'preprocessor.mean is \[122.77, 116.75, 104.09\].*mean=\[127.5'):
        build('half', preprocessor=dict(mean=[122.7709, 116.746, 104.0937], std=right['std']))
    build(tiny_pretrained, preprocessor=dict(right, std=[1.0] * 3))  # a path does not tell
    words = dict(mean='pretrained', std='pretrained')
    for pretrained in ('half', tiny_pretrained):  # the only tag of this tower
        model = build(pretrained, preprocessor=words)
        assert model.data_preprocessor.mean.flatten().tolist() == right['mean']
        assert model.data_preprocessor.std.flatten().tolist() == right['std']
