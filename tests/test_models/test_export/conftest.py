import open_clip
import pytest
import tiny_siglip
import torch
from tiny_siglip import shaken

from mmcfmask.models import OpenCLIPBackbone
from mmcfmask.models.export.parts import Preprocessing


@pytest.fixture(scope='session', autouse=True)
def siglip(tmp_path_factory):
    tiny_siglip.register(tmp_path_factory.mktemp('siglip'))


@pytest.fixture
def backbone(tmp_path):
    """Makes a backbone that was fine-tuned away from its pretrained weights, which hold both towers."""

    def make(name, **options):
        path = tmp_path / 'pretrained.pt'
        torch.save(shaken(open_clip.create_model(name), seed=2).state_dict(), path)
        return shaken(OpenCLIPBackbone(name, str(path), **options), seed=3)

    return make


@pytest.fixture
def preprocessing():
    return Preprocessing((32, 32), 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
