"""A tower large enough for every kernel, on the GPU and on the CPU."""

import json

import open_clip
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

TOWER = dict(
    embed_dim=64,
    quick_gelu=True,
    vision_cfg=dict(image_size=64, layers=4, width=128, head_width=64, patch_size=8),
    text_cfg=dict(context_length=16, vocab_size=49408, width=64, heads=2, layers=1),
)
BATCH = 16


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason='needs a GPU'))


@pytest.fixture(scope='session', autouse=True)
def gpu_tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gpu')
    (folder / 'gpu-vit.json').write_text(json.dumps(TOWER))
    open_clip.add_model_config(folder)
    init_default_scope('mmpretrain')


@pytest.fixture
def build():
    """build(mask, fill, **options of the backbone): a classifier whose student has moved away from its teacher, with
    attention far from uniform."""

    def build(mask='object', fill='single', teacher=None, **backbone):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='gpu-vit', **backbone),
                head=dict(type='CLIPDistillHead', num_classes=5),
                teacher=dict(type='OpenCLIPTeacher', **(teacher or {})),
                losses=[dict(type='CounterfactualDistillation')],
                data_preprocessor=dict(mask=mask, fill=fill, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            )
        ).train()
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(2)
            model.head.fc.weight.normal_()
            model.teacher.setup(model.backbone, model.neck, model.head)
            for parameter in model.backbone.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        return model

    return build


@pytest.fixture
def batch():
    """A new batch with each call, uint8 on the CPU as from a dataloader."""

    def batch():
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(256, (BATCH, 3, 64, 64), dtype=torch.uint8, generator=generator)
        return dict(inputs=images, data_samples=[DataSample().set_gt_label(i % 5) for i in range(BATCH)])

    return batch
