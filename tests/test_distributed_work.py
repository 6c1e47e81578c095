import pytest
import torch
from short_runs import launch

from mmcfmask.distributed import gather_shares, on_main, own_share

WORKER = """
import sys, torch
import torch.distributed as dist
from mmcfmask.distributed import gather_shares, on_main, own_share
from mmcfmask.engine.checkpoints import check_same_start
from mmcfmask.errors import ConfigError

dist.init_process_group('gloo')
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


def test_one_process_does_all():
    assert own_share('abc') == ['a', 'b', 'c']
    assert torch.equal(gather_shares(torch.eye(3), 3), torch.eye(3))
    assert on_main(lambda: 5) == 5
    with pytest.raises(KeyError):
        on_main(lambda: {}['key'])


def test_three_processes_share(tmp_path):
    (tmp_path / 'worker.py').write_text(WORKER)
    done = launch(str(tmp_path / 'worker.py'), 3)
    assert done.returncode == 0, done.stderr[-2000:]
