import open_clip
import pytest
import torch
from mmpretrain.structures import DataSample


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(label) for label in (0, 2, 2, 1)]


@pytest.fixture
def clip(tiny_pretrained):
    """The whole pretrained model, and its tokenizer."""
    return open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval(), open_clip.get_tokenizer('tiny-vit')
