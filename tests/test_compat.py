import builtins
import os
import pickle
import subprocess
import sys

import pytest
import torch
from processes import free_port

from mmcfmask.compat import can_fuse_optimizer, load_yapf


def test_fused_optimizer_is_known(monkeypatch):
    assert can_fuse_optimizer()  # torch >= 2.4, which the tests run on

    def refuse(*args, **kwargs):
        raise RuntimeError('`fused=True` requires all the params to be floating point Tensors of supported devices')

    monkeypatch.setattr(torch.optim, 'AdamW', refuse)
    assert not can_fuse_optimizer()


@pytest.mark.slow
def test_memory_of_freed_tensors_is_kept():
    """Page faults of making the same large tensor again, in a process of its own since there is no way back."""
    code = (
        'import resource, sys, torch\n'
        'from mmcfmask.compat import keep_freed_memory\n'
        'if sys.argv[1] == "keep": keep_freed_memory()\n'
        'make = lambda: torch.zeros(3_000_000, 8)\n'
        'for _ in range(4): make()\n'  # a small block may come to lie in the hole of the first
        'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'make()\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n'
    )
    faults = [
        int(subprocess.run([sys.executable, '-c', code, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ('keep', 'as it is')
    ]
    assert faults[0] * 10 < faults[1] or faults[1] < 100, faults  # the latter where the C library is not glibc


@pytest.mark.parametrize(
    'launcher, environment',
    [
        ('slurm', dict(SLURM_NTASKS='1', SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NODELIST='here')),
        ('mpi', dict(OMPI_COMM_WORLD_SIZE='1', OMPI_COMM_WORLD_RANK='0', OMPI_COMM_WORLD_LOCAL_RANK='0')),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason='the group is for machines without a GPU')
def test_launchers_without_a_gpu(launcher, environment):
    """In a process of its own, which the group would outlive otherwise."""
    code = (
        'from mmcfmask.compat import start_process_group_without_gpu\n'
        'import torch\n'
        f'start_process_group_without_gpu({launcher!r})\n'
        'print(torch.distributed.get_backend(), torch.distributed.get_world_size())\n'
    )
    env = {**os.environ, **environment, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ['gloo 1'], done.stderr[-2000:]  # older torch says more before it


def test_half_written_grammar_of_yapf_is_read_again(monkeypatch):
    """Another process writes yapf's cache: twice it is empty or cut off, then it is whole."""
    original, failures = (
        builtins.__import__,
        [EOFError('Ran out of input'), pickle.UnpicklingError('pickle data was truncated')],
    )

    def read(name, *args, **kwargs):
        if name == 'yapf' and failures:
            raise failures.pop()
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', read)
    load_yapf()
    assert not failures
    failures += [EOFError()] * 2
    with pytest.raises(RuntimeError, match='delete the folder YAPF'):
        load_yapf(patience=0)
