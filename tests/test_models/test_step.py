"""What a training step must not do."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that make a GPU's host wait: reading a number, or a shape that depends on values.
WAITING = {
    '_local_scalar_dense',
    'nonzero',
    'masked_select',
    'is_nonzero',
    'equal',
    'unique',
    '_unique2',
    'bincount',
    'repeat_interleave',
}


class Waiting(TorchDispatchMode):
    """Names of the operations inside it that would wait, and of index operations with boolean masks."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = [
            index for arg in args if isinstance(arg, (list, tuple)) for index in arg if isinstance(index, torch.Tensor)
        ]
        masks = name.startswith('index') and any(index.dtype == torch.bool for index in indices)
        if name in WAITING or masks:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_what_is_watched_for():
    with Waiting() as waiting:
        x = torch.rand(3)
        x.sum().item()
        x[x > 0.5]
        x[torch.tensor([0, 1])]
    assert waiting.names == ['_local_scalar_dense', 'index']


def waits_of_a_step(pretrained, preprocessor, *terms, teacher=True, amp=False):
    """Names of the operations of a training step that would wait."""
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit-quickgelu', pretrained=pretrained),
            head=dict(type='CLIPDistillHead', num_classes=5),
            teacher=dict(type='OpenCLIPTeacher') if teacher else None,
            losses=terms,
            data_preprocessor=dict(preprocessor, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
        )
    ).train()
    batch = dict(
        inputs=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(label) for label in (0, 3, 3, 1)],
    )
    with Waiting() as waiting:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
            losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
        sum(losses.values()).backward()
    return waiting.names


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['none', 'single', 'multi'])
def test_host_never_waits_for_the_device(tiny_pretrained, mask, fill, amp):
    term = dict(type='CounterfactualDistillation')
    assert not waits_of_a_step(tiny_pretrained, dict(mask=mask, fill=fill), term, amp=amp)


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_nor_do_context_terms_and_donors_of_other_classes(tiny_pretrained, fill):
    own = dict(counterfactual=dict(mask='context', mask_share=0.6, fill=fill, donors='other_class'))
    terms = dict(type='CounterfactualCrossEntropy', **own), dict(type='ContextInvariance', **own)
    assert not waits_of_a_step(tiny_pretrained, {}, *terms, teacher=False)
    assert not waits_of_a_step(tiny_pretrained, {}, dict(type='ContextDistillation', **own))
