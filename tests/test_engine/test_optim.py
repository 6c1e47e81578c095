import warnings

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmcfmask.engine import OneCycle


def values(schedule, group, steps):
    """(learning rate, momentum) of every step."""
    seen = []
    for _ in range(steps):
        seen.append((group['lr'], group['betas'][0] if 'betas' in group else group['momentum']))
        schedule.step()
    return seen


def optimizer(kind, lr):
    return getattr(torch.optim, kind)(
        [torch.nn.Parameter(torch.zeros(1))], lr, **(dict(momentum=0.9) if kind == 'SGD' else {})
    )


def ours(steps, counts=1, kind='AdamW', **settings):
    inner = optimizer(kind, 5e-4)
    schedule = OneCycle(OptimWrapper(inner, accumulative_counts=counts), by_epoch=False, end=steps * counts, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # no step of the optimizer
        return values(schedule, inner.param_groups[0], steps * counts)


@pytest.mark.parametrize('counts', [1, 4])
@pytest.mark.parametrize('kind', ['AdamW', 'SGD'])
@pytest.mark.parametrize(
    'steps, settings',
    [
        (100, dict(pct_start=0.02)),
        (60, dict(pct_start=0.02)),
        (90, dict(pct_start=0.1, three_phase=True)),
        (40, dict(pct_start=0.0)),
        (70, dict(pct_start=0.3, anneal_strategy='linear')),
        (80, dict(pct_start=0.1, cycle_momentum=False, div_factor=10.0, final_div_factor=50.0)),
    ],
)
def test_schedule_is_torchs(steps, settings, kind, counts):
    """Learning rate and momentum; under accumulation one value for all batches of an optimizer step."""
    inner = optimizer(kind, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = values(
            torch.optim.lr_scheduler.OneCycleLR(inner, 5e-4, steps, **settings), inner.param_groups[0], steps
        )
    seen = ours(steps, counts, kind, **{'cycle_momentum': True, **settings})
    assert len(seen) == steps * counts
    for batch, pair in enumerate(seen):
        assert pair == pytest.approx(expected[batch // counts], rel=1e-12)


@pytest.mark.parametrize('steps', [50, 30, 3])
def test_first_step_warms_up_where_less_than_a_step_is_left_to_it(steps):
    """pct_start · steps at 1, where torch divides by zero, and below, where it begins near the peak."""
    seen = ours(steps, pct_start=0.02, cycle_momentum=True)
    assert seen[0] == pytest.approx((5e-4 / 25, 0.95))
    for step in range(1, steps):
        down = (1 + torch.cos(torch.tensor(torch.pi * step / (steps - 1), dtype=torch.float64)).item()) / 2
        assert seen[step] == pytest.approx((2e-9 + (5e-4 - 2e-9) * down, 0.95 - 0.1 * down))
    assert ours(1, pct_start=0.02, cycle_momentum=True) == [pytest.approx((5e-4 / 25, 0.95))]


def test_momentum_of_an_optimizer_without():
    with pytest.raises(
        ValueError, match='param_scheduler.cycle_momentum=True, but the optimizer has neither betas nor momentum'
    ):
        OneCycle(
            OptimWrapper(torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])),
            by_epoch=False,
            end=10,
            cycle_momentum=True,
        )


def test_a_schedule_that_counted_batches_is_not_resumed():
    schedule = OneCycle(OptimWrapper(optimizer('AdamW', 1e-3), accumulative_counts=4), by_epoch=False, end=40)
    state = schedule.state_dict()
    schedule.load_state_dict(dict(state))
    state.pop('accumulative_counts')
    with pytest.raises(ValueError, match='as in version 0.1.0; now it has one for every optimizer step'):
        schedule.load_state_dict(state)
