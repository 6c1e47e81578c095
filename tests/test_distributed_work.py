import os
import tempfile

import pytest
import torch
from forks import launch

from mmcfmask.distributed import gather_shares, on_main, on_node, own_share

WORKER = """
import sys, torch
import torch.distributed as dist
from mmcfmask.compat import start_process_group_without_gpu
from mmcfmask.distributed import gather_shares, on_main, own_share
from mmcfmask.engine.checkpoints import check_same_start
from mmcfmask.errors import ConfigError

start_process_group_without_gpu('pytorch')
rank = dist.get_rank()
for items in (1, 2, 3, 7):
    share = own_share(range(items))
    assert len(share) == -(-items // dist.get_world_size())
    whole = gather_shares(torch.tensor([[item, item ** 2] for item in share]), items)
    assert whole.tolist() == [[item, item ** 2] for item in range(items)]

assert on_main(lambda: f'of process {rank}') == 'of process 0'
start = dict(meta=dict(iter=30)) if rank == 0 else None
def fail():
    raise ConfigError(f'error of process {rank}')
for function, expected in (
    (lambda: on_main(fail), 'error of process 0'),
    (lambda: check_same_start(start, 'runs'), 'from iteration 30, .* from the start. Put the'),
):
    try:
        function()
    except ConfigError as error:
        import re
        assert re.search(expected, str(error)), error
    else:
        raise AssertionError('no error')
check_same_start(None, 'runs')
check_same_start(dict(meta=dict(iter=30)), 'runs')
"""

ON_NODE = """
import os, sys
from pathlib import Path
import numpy as np
import torch.distributed as dist
from mmcfmask.compat import start_process_group_without_gpu
from mmcfmask.datasets import FolderDataset
from mmcfmask.datasets import class_folders
from mmcfmask.distributed import on_node

root, log = sys.argv[1:]
start_process_group_without_gpu('pytorch')
rank = dist.get_rank()

def work():
    with open(log, 'a') as file:
        file.write('worked\\n')
    return dict(text='é', numbers=np.arange(5), nothing=np.zeros(0), words=['a'])

for key in ('one', 'one', 'two'):
    found = on_node(key, work)
    assert found['text'] == 'é' and found['words'] == ['a'] and found['nothing'].size == 0
    assert found['numbers'].tolist() == [0, 1, 2, 3, 4] and not found['numbers'].flags.writeable
    dist.barrier()

def fail():
    raise KeyError(f'of {rank}')
try:
    on_node('broken', fail)
except KeyError as error:
    assert error.args == (f'of {rank}',)
else:
    raise AssertionError('no error')
if rank:
    assert on_node(f'of {rank} alone', lambda: rank) == rank  # nobody waits for the others

listed = class_folders.find_images
def counted(folder, *args):
    with open(log, 'a') as file:
        file.write(f'listed {Path(folder).name}\\n')
    return listed(folder, *args)
class_folders.find_images = counted
dataset = FolderDataset(root, holdout=dict(fraction=0.3, part='train'), metainfo=dict(notes=('x',)))
items = [dataset.get_data_info(index) for index in range(len(dataset))]
everywhere = [None] * dist.get_world_size()
dist.all_gather_object(everywhere, (items, dataset.metainfo, dataset.num_listed, dict(dataset.left_out)))
assert all(one == everywhere[0] for one in everywhere) and len(items) == 26
assert not dataset.data_bytes.flags.writeable and dataset.left_out == {'.txt': 1}
"""


def test_one_process_does_all():
    assert own_share('abc') == ['a', 'b', 'c']
    assert torch.equal(gather_shares(torch.eye(3), 3), torch.eye(3))
    assert on_main(lambda: 5) == 5
    with pytest.raises(KeyError):
        on_main(lambda: {}['key'])


def test_processes_of_a_machine_work_once(tmp_path, monkeypatch):
    images, temporary, log = tmp_path / 'images', tmp_path / 'temporary', tmp_path / 'log'
    for name in [f'{folder}/{number}.jpg' for folder in ('cat', 'dog') for number in range(18)] + ['cat/a.txt']:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    temporary.mkdir()
    dead = temporary / f'mmcfmask-{os.getuid()}-ofakilledrun'
    dead.mkdir()
    (dead / 'in_use').touch()
    monkeypatch.setenv('TMPDIR', str(temporary))
    (tmp_path / 'worker.py').write_text(ON_NODE)
    done = launch(str(tmp_path / 'worker.py'), 3, images, log)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(log.read_text().splitlines()) == ['listed cat', 'listed dog', 'worked', 'worked']
    assert not list(temporary.glob('mmcfmask-*-*'))


def test_a_single_process_shares_with_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    calls = []
    assert [on_node('key', lambda: calls.append(1) or len(calls)) for _ in range(2)] == [1, 2]
    assert not list(tmp_path.iterdir())


def test_three_processes_share(tmp_path):
    (tmp_path / 'worker.py').write_text(WORKER)
    done = launch(str(tmp_path / 'worker.py'), 3)
    assert done.returncode == 0, done.stderr[-2000:]
