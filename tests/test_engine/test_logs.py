import multiprocessing
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmcfmask.engine import MeanLogProcessor


def collect(rank, processes, store, out):
    """What a process would log in training and in validation, its losses being 1, 2, 3 and ten times its rank more."""
    if processes > 1:
        dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=processes)
    hub = MessageHub(f'logs{rank}')
    for step in (1, 2, 3):
        hub.update_scalars(
            {'train/loss': step + 10 * rank, 'train/loss_cls': 2 * step + 10 * rank, 'train/lr': 0.1 * step}
        )
    hub.update_scalar('val/loss', rank)
    runner, processor = SimpleNamespace(message_hub=hub), MeanLogProcessor(window_size=2)
    out.put(
        (
            rank,
            *(
                dict(processor._collect_scalars([], runner, mode, prefix))
                for mode, prefix in [('train', False), ('train', True), ('val', False)]
            ),
        )
    )


@pytest.mark.parametrize('processes', [1, 3])
def test_losses_are_the_mean_over_all_processes(processes, tmp_path):
    context = multiprocessing.get_context('fork')
    out = context.Queue()
    workers = [
        context.Process(target=collect, args=(rank, processes, tmp_path / 'store', out)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = sorted((out.get(timeout=100) for _ in workers), key=lambda result: result[0])
    for worker in workers:
        worker.join()
    more = sum(10 * rank for rank in range(processes)) / processes
    for rank, short, long, val in results:  # losses are smoothed over two steps
        assert short == pytest.approx(dict(loss=2.5 + more, loss_cls=5 + more, lr=0.3)) and val == dict(loss=rank)
        assert long == {f'train/{name}': value for name, value in short.items()}


def test_configs_have_it():
    assert Config.fromfile('configs/shapes/ft.py').log_processor.type == 'MeanLogProcessor'
