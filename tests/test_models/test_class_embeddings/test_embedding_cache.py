"""Embeddings on disk."""

import hashlib
import multiprocessing
import os
import time

import pytest
import torch
from safetensors.torch import load_file
from shards import write_tar

from mmcfmask.models.class_embeddings.cache import cached, update_digest


def test_cache_file(cache):
    expected = torch.randn(3, 4)
    assert torch.equal(cached(dict(type='text', a=1), lambda: expected), expected)
    (path,) = cache.glob('*.safetensors')
    assert torch.equal(load_file(path)['weight'], expected)
    assert path.stat().st_mode & 0o044 == 0o044 & ~os.umask(os.umask(0))  # other users may read it, as the umask says
    assert torch.equal(cached(dict(type='text', a=1), lambda: torch.zeros(3, 4)), expected)
    assert torch.equal(cached(dict(type='text', a=2), lambda: torch.ones(3, 4)), torch.ones(3, 4))


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:-5], lambda data: b'x' * len(data)])
def test_damaged_cache_file_is_made_again(cache, damage):
    cached(dict(type='text'), lambda: torch.zeros(3, 4))
    (path,) = cache.glob('*.safetensors')
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert torch.equal(cached(dict(type='text'), lambda: torch.ones(3, 4)), torch.ones(3, 4))


def test_failed_computation_leaves_nothing(cache):
    def fail():
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        cached(dict(type='text'), fail)
    assert not list(cache.glob('*.safetensors'))
    assert torch.equal(cached(dict(type='text'), lambda: torch.ones(1, 1)), torch.ones(1, 1))  # and the lock is free


def compute_slowly(folder, barrier, number):
    def compute():
        with open(f'{folder}/computations', 'a') as file:
            file.write('x')
        time.sleep(0.3)
        return torch.full((2, 2), float(number))

    barrier.wait()
    torch.save(cached(dict(type='text'), compute, folder), f'{folder}/result{number}')


def test_processes_compute_once(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(3)
    workers = [context.Process(target=compute_slowly, args=(str(tmp_path), barrier, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / 'computations').read_text() == 'x'
    results = [torch.load(tmp_path / f'result{number}', weights_only=True) for number in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(
        OSError, match='cannot be written.*set cache_dir of class_weights or the environment variable MMCFMASK_CACHE'
    ):
        cached(dict(type='text'), lambda: torch.zeros(1, 1), str(tmp_path / 'file'))


def test_images_in_a_changed_shard_are_others(tmp_path):
    path = write_tar(tmp_path / '0.tar', [('1.png', b'')])

    def digest():
        found = hashlib.sha256()
        update_digest(found, dict(img_path=f'tar://{path}#512+0#1.png', gt_label=0))
        return found.hexdigest()

    first = digest()
    assert digest() == first
    os.utime(path, ns=(1, 1))
    assert digest() != first
