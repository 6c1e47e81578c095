"""From a run to a folder that other people load, and back."""

import json
import shutil
import socket
import time
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from mmcfmask import load_model
from mmcfmask.datasets import ShapesDataset
from mmcfmask.engine import hub
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.config import load_config
from mmcfmask.engine.provenance import read_training_settings
from mmcfmask.engine.run_publish import portable_config, run_publish
from mmcfmask.engine.run_test import run_test
from mmcfmask.errors import ConfigError, MissingFileError, StorageError

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'shapes' / 'cfmask.py')
SMALL = [f'test_dataloader.{name}.dataset.size=20' for name in ('test', 'v2')]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work dir of a run: a checkpoint with its training state, metrics.json, and paths of this machine."""
    folder = tmp_path_factory.mktemp('runs') / 'cfmask'
    folder.mkdir()
    model = load_model(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    cfg = load_config(CONFIG, SMALL)
    cfg.work_dir, cfg.load_from = str(folder), str(folder / 'start.pth')
    cfg.train_dataloader.dataset = dict(
        type='CachedDataset', dataset=cfg.train_dataloader.dataset, cache_dir='/a/cache'
    )
    cfg.val_dataloader.dataset.data_root = '/home/me/pictures/'
    cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='WandbVisBackend')])
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='CounterfactualPictureHook')]
    meta = dict(
        cfg=cfg.pretty_text,
        seed=7,
        epoch=2,
        experiment_name='cfmask_20260101_000000',
        checkpoint='/home/me/start.pth',
        dataset_meta=dict(classes=ShapesDataset.METAINFO['classes']),
    )
    torch.save(dict(state_dict=model.state_dict(), meta=meta, optimizer={}), folder / 'best.pth')
    (folder / 'epoch_9.pth').write_bytes(b'later, and worse')
    run_test(CONFIG, folder / 'best.pth', SMALL, shifts=['v2'], out=folder / 'metrics.json', work_dir=folder / 'work')
    return folder


@pytest.fixture(scope='module')
def published(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'model'
    assert run_publish(trained, to=folder, formats=['open_clip']) == str(folder)
    return folder


def test_the_published_model_is_the_model(trained, published, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    model = load_model(published, published)
    assert torch.equal(model(images), load_model(CONFIG, trained / 'best.pth')(images))
    assert torch.equal(model(images), load_model(published)(images))  # not the pretrained weights
    assert not torch.equal(model(images), load_model(published / 'config.py')(images))
    assert model._dataset_meta['classes'] == ShapesDataset.METAINFO['classes']
    found = run_test(published, published, shifts=['v2'], out=tmp_path / 'again.json', work_dir=tmp_path / 'work')
    expected = json.loads((trained / 'metrics.json').read_text())
    assert found['metrics'] == expected['metrics'] and found['sets'].keys() == expected['sets'].keys()
    assert (found['method'], found['seed']) == (expected['method'], expected['seed']) == ('cfmask', 7)
    whole = open_clip.create_model(f'local-dir:{published}').eval()
    torch.testing.assert_close(whole.encode_image(images), model.extract_feat(images)[-1], rtol=1e-5, atol=1e-5)


def test_nothing_of_the_machine_is_published(trained, published):
    checkpoint = check_checkpoint(str(published / 'checkpoint.pth'))
    texts = [(published / name).read_text() for name in ('README.md', 'config.py', 'metrics.json')]
    for text in (*texts, checkpoint['meta']['cfg'], str(checkpoint['meta'])):
        assert not any(
            word in text for word in (str(trained.parent), '/home/me', 'Wandb', 'CachedDataset', 'PictureHook')
        )
    assert set(checkpoint) == {'state_dict', 'meta'} and checkpoint['meta']['checkpoint'] == 'start.pth'
    cfg = load_config(str(published / 'config.py'))
    assert cfg.train_dataloader.dataset.type == 'ShapesDataset' and cfg.val_dataloader.dataset.data_root == 'pictures'
    assert cfg.pretty_text == checkpoint['meta']['cfg']


def test_reports_take_it_for_the_same_training(trained, published):
    metas = [check_checkpoint(str(path))['meta'] for path in (trained / 'best.pth', published / 'checkpoint.pth')]
    before, after = map(read_training_settings, metas)
    assert after['load_from'] == 'start.pth' and after['val_dataloader.dataset.data_root'] == 'pictures'
    assert 'CounterfactualPictureHook' in before.pop('custom_hooks') and after.pop('custom_hooks')
    assert before == after


def test_the_card(published):
    card = (published / 'README.md').read_text()
    metrics = json.loads((published / 'metrics.json').read_text())
    assert metrics['checkpoint']['path'] == 'checkpoint.pth' and metrics['checkpoint']['sha256'] in card
    top1 = metrics['metrics']['test/top1']
    assert f'| test | {top1:.2f} |' in card and '| Seed | 7 |' in card and '0: circle, 1: square' in card
    assert "load_model('FOLDER', 'FOLDER')" in card and "'local-dir:FOLDER'" in card and '\n# cfmask\n' in card


def test_a_checkpoint_without_results(trained, tmp_path, capsys):
    shutil.copy(trained / 'best.pth', tmp_path / 'alone.pth')
    run_publish(tmp_path / 'alone.pth', to=tmp_path / 'out', show=True)
    assert (
        not (tmp_path / 'out' / 'metrics.json').exists()
        and '## Results' not in (tmp_path / 'out/README.md').read_text()
    )
    assert 'The card has no results: there is no metrics.json of' in capsys.readouterr().out
    run_publish(tmp_path / 'alone.pth', to=tmp_path / 'more', metrics=trained / 'metrics.json')
    assert '## Results' in (tmp_path / 'more' / 'README.md').read_text()


def test_what_cannot_be_published(trained, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(MissingFileError, match="empty' holds no checkpoint"):
        run_publish(tmp_path / 'empty', to=tmp_path / 'out')
    with pytest.raises(MissingFileError, match='there is no work dir or checkpoint'):
        run_publish(tmp_path / 'gone', to=tmp_path / 'out')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').touch()
    with pytest.raises(StorageError, match="full' is not empty: choose another with --to"):
        run_publish(trained, to=tmp_path / 'full')
    with pytest.raises(ConfigError, match='--formats pickle: choose from open_clip'):
        run_publish(trained, to=tmp_path / 'out', formats=['pickle'])
    with pytest.raises(ConfigError, match='--private is for a repository'):
        run_publish(trained, to=tmp_path / 'out', private=True)
    with pytest.raises(ConfigError, match='holds no config'):
        portable_config({}, 'a.pth')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['empty', 'full']


def test_nothing_is_left_half_written(trained, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError('killed')

    monkeypatch.setattr('mmcfmask.engine.run_publish.write_card', fail)
    with pytest.raises(RuntimeError, match='killed'):
        run_publish(trained, to=tmp_path / 'out')
    assert not list(tmp_path.iterdir())


# The hub
# ------------------------------------------------------------------------------------------------------------------


class FakeHub:
    """The calls of huggingface_hub that are used, on folders in place of repositories."""

    def __init__(self, root):
        self.root, self.private = root, {}

    def list_repo_files(self, repository):
        if not (self.root / repository).is_dir():
            raise RepositoryNotFoundError('404', response=Response(404))
        return [path.name for path in (self.root / repository).iterdir()]

    def create_repo(self, repository, private, exist_ok):
        (self.root / repository).mkdir(parents=True, exist_ok=exist_ok)
        self.private[repository] = private
        return f'https://hub/{repository}'

    def upload_folder(self, repo_id, folder_path, delete_patterns, commit_message):
        assert delete_patterns == '*' and commit_message
        shutil.rmtree(self.root / repo_id)
        shutil.copytree(folder_path, self.root / repo_id)

    def snapshot_download(self, repository, revision, allow_patterns):
        self.list_repo_files(repository)
        out = self.root / 'cache' / repository / str(revision)
        out.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (self.root / repository / name).exists():
                shutil.copy(self.root / repository / name, out)
        return str(out)


class Response:
    headers, request = {}, None

    def __init__(self, status):
        self.status_code = status


@pytest.fixture
def online(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / 'hub')
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: fake)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: 'secret')
    return fake


def test_push_and_pull(trained, online, tmp_path):
    address = 'hf://me/model'
    for formats in (['open_clip'], []):  # a second time: the files of the first are replaced
        assert run_publish(trained, to=address, formats=formats, private=True) == 'https://hub/me/model'
    assert online.private == {'me/model': True}
    assert sorted(online.list_repo_files('me/model')) == ['README.md', 'checkpoint.pth', 'config.py', 'metrics.json']
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_model(address, address)(images), load_model(CONFIG, trained / 'best.pth')(images))
    assert hub.published_checkpoint(f'{address}@v1').endswith('me/model/v1/checkpoint.pth')
    assert torch.equal(load_model(CONFIG, f'{address}@v1')(images), load_model(address, address)(images))


def test_what_the_hub_refuses(trained, online, monkeypatch):
    online.create_repo('me/other', None, True)
    (online.root / 'me' / 'other' / '.gitattributes').touch()
    hub.check_pushable('hf://me/other')  # as good as empty
    (online.root / 'me' / 'other' / 'pytorch_model.bin').touch()
    with pytest.raises(
        StorageError, match=r'me/other: the repository exists and holds other files \(pytorch_model.bin\)'
    ):
        run_publish(trained, to='hf://me/other')
    with pytest.raises(
        MissingFileError, match='hf://me/gone: there is no such model on the hub, or it is private: run'
    ):
        load_model('hf://me/gone')
    with pytest.raises(MissingFileError, match='hf://me/other has no checkpoint.pth: it is no model of mmcfmask'):
        load_model('hf://me/other')
    for address in ('hf://name', 'hf://a/b/c', 'hf://'):
        with pytest.raises(ConfigError, match='names no repository of the hub: write hf://user/name'):
            run_publish(trained, to=address)
    with pytest.raises(ConfigError, match='leave out @v1'):
        run_publish(trained, to='hf://me/new@v1')
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
    with pytest.raises(StorageError, match='there is no token for the hub: run `hf auth login`'):
        run_publish(trained, to='hf://me/new')
    assert not (online.root / 'me' / 'new').exists()


@pytest.mark.parametrize(
    'error, message',
    [
        (OfflineModeIsEnabled('off'), 'switched off by HF_HUB_OFFLINE'),
        (HfHubHTTPError('403 Forbidden', response=Response(403)), 'answers 403 Forbidden .run `hf auth login`'),
        (HfHubHTTPError('500 Server Error', response=Response(500)), 'answers 500 Server Error$'),
        (ConnectionError('refused'), r'cannot be reached \(refused\): check the network'),
    ],
)
def test_errors_of_the_hub_are_one_line(error, message):
    with pytest.raises(StorageError, match=f'^--to hf://a/b: the hub .*{message}'), hub.explained('--to hf://a/b'):
        raise error
    with pytest.raises(ZeroDivisionError), hub.explained('x'):
        raise ZeroDivisionError


def test_no_network(monkeypatch, tmp_path):
    """The real client, and nobody at the other end, or no address of it."""
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # between its retries
    with pytest.raises(StorageError, match='hf://a/b: the hub is switched off by HF_HUB_OFFLINE|cannot be reached'):
        hub.pull('hf://a/b')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: 'secret')
    with pytest.raises(StorageError, match='--to hf://a/b: the hub cannot be reached .*check the network'):
        hub.check_pushable('hf://a/b')

    def fail(*args):
        raise socket.gaierror(-2, 'unknown')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    monkeypatch.setattr('mmcfmask.models.towers.downloads.getproxies', dict)
    with pytest.raises(StorageError, match=r'the hub cannot be reached \(no network: 127.0.0.1: unknown\): check the'):
        hub.check_pushable('hf://a/b')
