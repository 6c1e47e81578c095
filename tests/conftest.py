"""Tiny towers, so that every test runs in seconds on a CPU without a network."""

import json
import os
import sys
from pathlib import Path

# Only tests/gpu, run by `make test-gpu`, are for GPUs: all others hide them, before torch looks.
GPU_TESTS = Path(__file__).resolve().parent / 'gpu'
if any(GPU_TESTS in (path := Path(argument.split('::')[0]).resolve(), *path.parents) for argument in sys.argv[1:]):
    os.environ['GPU_TESTS'] = '1'  # for worker processes, which have no arguments
if 'GPU_TESTS' in os.environ:
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # for deterministic runs; read with the first product
else:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    collect_ignore = ['gpu']

os.environ['HF_HUB_OFFLINE'] = (
    '1'  # a test that reaches for the hub is a mistake; read when huggingface_hub is imported
)

import mmcfmask  # noqa: F401  before any test imports mmengine (compat.load_yapf)

# isort: split
import open_clip
import pytest
import torch

TINY = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=32, layers=3, width=32, head_width=8, patch_size=8),
    text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
)


@pytest.fixture(scope='session', autouse=True)
def tiny_towers(tmp_path_factory):
    """Registers 'tiny-vit' and 'tiny-vit-quickgelu' with open_clip."""
    folder = tmp_path_factory.mktemp('configs')
    for name, config in {
        'tiny-vit': TINY,
        'tiny-vit-quickgelu': dict(TINY, quick_gelu=True),
        'tiny-vit-wide': dict(TINY, embed_dim=24),
        'tiny-vit-fine': dict(TINY, vision_cfg=dict(TINY['vision_cfg'], patch_size=4)),
        'tiny-vit-224': dict(TINY, vision_cfg=dict(TINY['vision_cfg'], image_size=224, patch_size=32)),
    }.items():
        (folder / f'{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def save_weights(name, path):
    torch.manual_seed(1)
    model = open_clip.create_model(name)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope='session')
def tiny_pretrained(tiny_towers, tmp_path_factory):
    """Path of a full 'tiny-vit' checkpoint whose weights are large enough for attention to be far from uniform."""
    return save_weights('tiny-vit', tmp_path_factory.mktemp('weights') / 'tiny.pt')


@pytest.fixture(scope='session')
def tiny_pretrained_224(tiny_towers, tmp_path_factory):
    """The same for 'tiny-vit-224'."""
    return save_weights('tiny-vit-224', tmp_path_factory.mktemp('weights') / 'tiny224.pt')
