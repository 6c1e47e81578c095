"""Small classifiers with loss terms, for tests of the terms."""

import math

import torch
from mmpretrain.registry import MODELS

import mmcfmask  # noqa: F401

WITHOUT_TEACHER = {
    'FLYP',
    'CaRot',
    'CaRotImage',
    'CounterfactualCrossEntropy',
    'ContextInvariance',
    'MixedCrossEntropy',
    'MPMNCE',
}
NAMES = ['star', 'blue circle', 'ring']
TEMPLATES = ['a photo of a {}.', 'a sketch of the {}.', '{} in the rain']


def build(pretrained, *losses, teacher=True, preprocessor=None, backbone=None, **head):
    torch.manual_seed(2)
    head = dict(
        dict(
            type='CLIPDistillHead',
            num_classes=3,
            class_weights=dict(type='text', classnames=NAMES, templates=TEMPLATES),
        ),
        **head,
    )
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained, **(backbone or {})),
            head=head,
            teacher=dict(type='OpenCLIPTeacher')
            if teacher and {term['type'] for term in losses} - WITHOUT_TEACHER
            else None,
            losses=list(losses),
            data_preprocessor=preprocessor,
        )
    ).train()


def move_away(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return model


def unit(vector):
    return [x / math.sqrt(sum(y * y for y in vector)) for x in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def train_a_little(model, batch, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(*batch, mode='loss').values()).backward()
        optimizer.step()
