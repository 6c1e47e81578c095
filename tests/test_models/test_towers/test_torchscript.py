"""The tensors of TorchScript archives, and files of weights that would do something."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.models.class_embeddings.build import load_class_weights
from mmcfmask.models.towers.loading import load_image_tower, load_text_model
from mmcfmask.models.towers.torchscript import is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings('ignore')  # torch.jit is on its way out


class Part(nn.Module):
    """Parameters, buffers, constants and shared tensors in every dtype, nested."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm2d(3)
        self.transposed = nn.Parameter(torch.randn(2, 3).T)
        self.mixed = nn.Sequential(nn.Linear(4, 4).half(), nn.Conv2d(3, 4, 3).bfloat16())
        self.many = nn.ModuleList([nn.Linear(2, 2) for _ in range(12)])
        self.tied = self.linear.weight
        self.constant, self.shape = torch.randn(3), [1, 2]
        self.register_buffer('steps', torch.arange(5))
        self.register_buffer('other', torch.ones(2), persistent=False)

    def forward(self, x):
        return self.linear(x) + self.constant.sum()


@pytest.mark.parametrize('make', [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(1, 3))])
def test_tensors_are_those_of_torch(tmp_path, make):
    path = str(tmp_path / 'a.pt')
    make(Part()).save(path)
    expected, found = torch.jit.load(path).state_dict(), read_torchscript(path)
    assert list(found) == list(expected) and len(found) == 39
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items())
    assert is_torchscript(path)
    torch.save(Part().state_dict(), path)
    assert not is_torchscript(path)


class Writes(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path, self.training = state[0], state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x):
        return x


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_torchscript(path, value):
    """An archive that looks like TorchScript, with any pickle in it."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('data.pkl', 'constants.pkl'):
            archive.writestr(f'a/{name}', pickle.dumps(value))


def evil_files(folder, trace):
    """Files that would make the folder ``trace``, in every format of weights."""
    evil = Evil(trace)
    as_torchscript(folder / 'script.pt', evil)
    torch.save(evil, folder / 'object.pt')
    torch.save({'state_dict': evil}, folder / 'state.pt')
    torch.save({'state_dict': {'visual.proj': evil}}, folder / 'old.pt', _use_new_zipfile_serialization=False)
    np.save(folder / 'array.npy', np.array([evil], dtype=object), allow_pickle=True)
    np.savez(folder / 'array.npz', params=np.array([evil], dtype=object))
    (folder / 'plain.bin').write_bytes(pickle.dumps(evil))
    (folder / 'named.safetensors').write_bytes(pickle.dumps(evil))
    return sorted(folder.iterdir())


def test_malicious_files_do_nothing(tmp_path, tiny_pretrained):
    (tmp_path / 'files').mkdir()
    files = evil_files(tmp_path / 'files', tmp_path / 'trace')
    assert len(files) == 8
    for path in files:
        for load in (
            lambda path: load_image_tower('tiny-vit', path),
            lambda path: load_text_model('tiny-vit', path),
            load_class_weights,
            check_checkpoint,
        ):
            with pytest.raises((ValueError, OSError), match=path.name):
                load(str(path))
    assert not (tmp_path / 'trace').exists()
    with open(tmp_path / 'files' / 'object.pt', 'rb') as file:  # they would, to who trusts them
        torch.load(io.BytesIO(file.read()), weights_only=False)
    assert (tmp_path / 'trace').exists()


def test_code_of_torchscript_is_not_run(tmp_path):
    torch.jit.save(torch.jit.script(Writes(str(tmp_path / 'trace'))), str(tmp_path / 'writes.pt'))
    (tmp_path / 'trace').unlink(missing_ok=True)
    with pytest.raises(ValueError, match='writes.pt'):
        load_image_tower('tiny-vit', str(tmp_path / 'writes.pt'))
    assert not (tmp_path / 'trace').exists()
    torch.jit.load(str(tmp_path / 'writes.pt'))
    assert (tmp_path / 'trace').exists()


@pytest.mark.parametrize('change', ['flip', 'drop', 'nested'])
def test_damaged_archives(tmp_path, change):
    path = tmp_path / 'a.pt'
    torch.jit.script(Part()).save(str(path))
    data = bytearray(path.read_bytes())
    if change == 'flip':
        data[data.index(Part().steps.numpy().tobytes()) + 3] ^= 1
        path.write_bytes(data)
    elif change == 'drop':
        with zipfile.ZipFile(path) as archive:
            kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith('data/0')}
        with zipfile.ZipFile(path, 'w') as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
    else:
        as_torchscript(path, [1, 2])
    with pytest.raises(ValueError, match='a.pt cannot be read as a checkpoint'):
        load_image_tower('tiny-vit', str(path))


def test_modules_that_multiply_are_refused(tmp_path):
    """Every one of 60 modules holds the next one twice: 2⁶⁰ places."""
    pickled = b'\x80\x02c__torch__\nM\n)\x81}b'
    for level in range(60):
        memo = b'q' + bytes([level])
        pickled += (
            memo
            + b'0c__torch__\nM\n)\x81}('
            + b''.join(b'U\x01' + name + b'h' + bytes([level]) for name in (b'a', b'b'))
            + b'ub'
        )
    path = tmp_path / 'bomb.pt'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('bomb/data.pkl', pickled + b'.')
        archive.writestr('bomb/constants.pkl', b'\x80\x02).')
        archive.writestr('bomb/code/__torch__.py', 'class M(Module):\n  __parameters__ = []\n')
    with pytest.raises(ValueError, match='nested endlessly'):
        read_torchscript(path)
