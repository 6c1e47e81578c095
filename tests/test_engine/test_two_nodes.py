"""Two nodes of two processes each, as network namespaces of this machine: one is killed and comes back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from short_runs import weights

ROOT = Path(__file__).parents[2]
NODES = {'cfmask-a': '10.213.7.1', 'cfmask-b': '10.213.7.2'}
PORT = 29400
NOTICED = 25  # seconds until torchrun counts a silent node as lost: 3 missed signs of life, one every 5 seconds
SMALL = [
    'train_dataloader.dataset.size=64',
    'train_dataloader.batch_size=4',
    'total_batch_size=16',
    'val_dataloader.dataset.size=20',
    'train_cfg.max_epochs=3',
    'custom_hooks.3.interval=2',
]


def ip(*words):
    subprocess.run(['ip', *words], check=True, capture_output=True, text=True)


def remove_nodes():
    for node in NODES:
        subprocess.run(['ip', 'netns', 'del', node], capture_output=True)


@pytest.fixture
def nodes():
    """Two namespaces, joined by a cable."""
    if not sys.platform.startswith('linux') or not shutil.which('ip') or os.geteuid() != 0:
        pytest.skip('network namespaces need Linux, the command ip, and root')
    remove_nodes()
    try:
        for node in NODES:
            ip('netns', 'add', node)
    except subprocess.CalledProcessError as error:
        pytest.skip(f'no network namespaces here: {error.stderr.strip()}')
    first, second = NODES
    ip('link', 'add', 'cable', 'netns', first, 'type', 'veth', 'peer', 'name', 'cable', 'netns', second)
    for node, address in NODES.items():
        ip('-n', node, 'addr', 'add', f'{address}/24', 'dev', 'cable')
        for device in ('lo', 'cable'):
            ip('-n', node, 'link', 'set', device, 'up')
    yield list(NODES)
    remove_nodes()


def start(node, work_dir, log):
    """torchrun on one node; a node that comes back calls the same."""
    endpoint = f'{next(iter(NODES.values()))}:{PORT}'
    command = ['ip', 'netns', 'exec', node, sys.executable, 'tools/launch.py', '--nnodes=2', '--nproc_per_node=2']
    command += ['--max-restarts=3', '--rdzv_backend=c10d', f'--rdzv_endpoint={endpoint}', f'--local_addr={NODES[node]}']
    command += [f'--rdzv_conf=is_host={int(node == next(iter(NODES)))}']  # both have the host name of this machine
    command += ['tools/train.py', 'configs/shapes/cfmask.py', '--launcher', 'pytorch', '--resume', '--seed', '0']
    command += ['--work-dir', str(work_dir), '--cfg-options', *SMALL]
    environment = dict(os.environ, OMP_NUM_THREADS='1', GLOO_SOCKET_IFNAME='cable', PYTHONPATH=str(ROOT))
    with open(log, 'a') as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def wait(condition, jobs, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(job.poll() in (None, 0) for job in jobs)
        time.sleep(0.2)


@pytest.mark.slow
def test_a_node_that_was_killed_comes_back(nodes, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    jobs = [start(node, whole, tmp_path / f'{node}.log') for node in nodes]
    wait(lambda: all(job.poll() == 0 for job in jobs), jobs)

    first, second = (start(node, broken, tmp_path / f'{node}.log') for node in nodes)
    wait(lambda: list(broken.glob('resume_*.pth')) + list(broken.glob('epoch_1.pth')), [first, second])
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    assert not (broken / 'epoch_3.pth').exists() and first.poll() is None
    time.sleep(NOTICED)
    second = start(nodes[1], broken, tmp_path / f'{nodes[1]}.log')
    wait(lambda: first.poll() == second.poll() == 0, [first, second])

    log = (tmp_path / f'{nodes[0]}.log').read_text()
    assert 'resumed epoch' in log or 'resumed from' in log.lower()
    expected, resumed = (weights(folder / 'epoch_3.pth') for folder in (whole, broken))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)
