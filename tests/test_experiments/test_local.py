"""Processes of this machine."""

import os

import pytest

from mmcfmask.experiments import local
from mmcfmask.experiments.jobs import Command
from mmcfmask.experiments.local import LocalExecutor, make_environment


def test_a_command_writes_its_log_and_ends(tmp_path):
    (tmp_path / 'script.py').write_text('import sys, time\nprint(*sys.argv[1:])\ntime.sleep(float(sys.argv[1]))\n')
    start = LocalExecutor(2).start
    quick, slow = (
        start(Command('x', [str(tmp_path / 'script.py'), seconds], tmp_path / f'{seconds}.log'), slot)
        for slot, seconds in enumerate(('0', '60'))
    )
    assert quick.process.wait(30) == quick.poll() == 0 and (tmp_path / '0.log').read_text() == '0\n'
    assert slow.poll() is None
    slow.stop()
    assert slow.poll() not in (None, 0)


@pytest.mark.parametrize(
    'gpus, visible, slots, expected',
    [
        (0, None, 1, [None]),
        (0, None, 4, ['2', '2']),
        (1, '5,7', 2, ['5,7', '5,7']),
        (2, '5,7', 3, ['5', '7', '5']),
        (2, None, 2, ['0', '1']),
    ],
)
def test_gpus_take_turns_and_cores_are_shared(monkeypatch, gpus, visible, slots, expected):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: gpus)
    key = 'CUDA_VISIBLE_DEVICES' if gpus else 'OMP_NUM_THREADS'
    assert [make_environment(slot, slots).get(key) for slot in range(len(expected))] == expected
