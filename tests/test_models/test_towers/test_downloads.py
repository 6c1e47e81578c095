import socket

import pytest
from huggingface_hub import constants

from mmcfmask.errors import MissingFileError
from mmcfmask.models.towers.downloads import offline_if_unreachable
from mmcfmask.models.towers.loading import load_image_tower


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_hub_is_not_asked_without_a_network(no_network):
    with offline_if_unreachable() as reason:
        assert reason == 'no network: huggingface.co: Name or service not known' and constants.is_offline_mode()
    assert not constants.is_offline_mode()


def test_the_proxy_decides(no_network):
    no_network.setenv('HTTPS_PROXY', 'http://proxy:3128')
    with offline_if_unreachable() as reason:
        assert reason is None and not constants.is_offline_mode()


def test_a_network_changes_nothing(no_network):
    no_network.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: [])
    with offline_if_unreachable() as reason:
        assert reason is None and not constants.is_offline_mode()


def test_weights_that_cannot_be_downloaded(no_network):
    with pytest.raises(MissingFileError) as error:
        load_image_tower('ViT-B-16-quickgelu', 'metaclip_fullcc')
    assert 'cannot be downloaded (no network: huggingface.co: Name or service not known). On a' in str(error.value)
