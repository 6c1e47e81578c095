"""Moving averages, the weight of the distillation, and the stop at an invalid loss."""

import pytest
import torch
from short_runs import config, train

from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.hooks import DistillWeightHook, RelativeEMAHook


@pytest.mark.parametrize(
    'hook', [dict(type='EMAHook', momentum=0.25), dict(type='RelativeEMAHook', horizon=0.8)]
)  # 1 / (0.8 · 5 steps)
def test_moving_average_is_validated_and_saved(hook, tmp_path, tiny_pretrained, monkeypatch):
    """What the hooks average by hand; the teacher has no part in it."""
    import mmcfmask.engine.train_loop as loops
    from mmcfmask.models import CounterfactualClassifier

    trajectory, validated = [], []
    original, predict = loops.ResumableEpochLoop.run_iter, CounterfactualClassifier.predict

    def run_iter(self, idx, data_batch):
        original(self, idx, data_batch)
        trajectory.append(self.runner.model.backbone.visual.proj.detach().clone())

    def look(self, *args, **kwargs):
        validated.append(self.backbone.visual.proj.detach().clone())
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(loops.ResumableEpochLoop, 'run_iter', run_iter)
    monkeypatch.setattr(CounterfactualClassifier, 'predict', look)
    cfg = config(tmp_path, tiny_pretrained, **{'train_cfg.max_epochs': 1})
    cfg.custom_hooks.append(hook)
    train(cfg)

    average = trajectory[0]
    for weight in trajectory[1:]:
        average = 0.75 * average + 0.25 * weight
    if hook['type'] == 'RelativeEMAHook':  # the first weights weigh no more than those after them
        shares = torch.tensor([0.75**age for age in range(4, -1, -1)])
        average = sum(share / shares.sum() * weight for share, weight in zip(shares, trajectory))
    assert len(trajectory) == 5 and (average - trajectory[-1]).abs().max() > 1e-5
    for seen in validated:
        torch.testing.assert_close(seen, average)
    for path in (tmp_path / 'best.pth', tmp_path / 'epoch_1.pth'):
        checkpoint = check_checkpoint(str(path))
        torch.testing.assert_close(checkpoint['state_dict']['backbone.visual.proj'], average)
        torch.testing.assert_close(checkpoint['ema_state_dict']['module.backbone.visual.proj'], trajectory[-1])
        assert not any('teacher' in name for part in ('state_dict', 'ema_state_dict') for name in checkpoint[part])


def test_moving_average_counts_optimizer_steps(tmp_path, tiny_pretrained):
    """10 steps of 8 images, at once or in batches of 4: one average."""
    averages = []
    for batch in 8, 4:
        cfg = config(tmp_path / str(batch), tiny_pretrained, 'ft', **{'train_dataloader.batch_size': batch})
        cfg.custom_hooks.append(dict(type='RelativeEMAHook', horizon=0.8))
        train(cfg)
        averages.append(torch.load(tmp_path / str(batch) / 'epoch_2.pth', weights_only=True))
    assert [int(average['ema_state_dict']['steps']) for average in averages] == [10, 10]
    for name in 'head.fc.weight', 'backbone.visual.proj':
        torch.testing.assert_close(*(average['state_dict'][name] for average in averages), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(horizon=0.0), 'above 0 and at most 1'),
        (dict(horizon=2.0), 'above 0 and at most 1'),
        (dict(momentum=0.1), 'leave momentum out'),
    ],
)
def test_relative_moving_average_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        RelativeEMAHook(**wrong)


@pytest.mark.parametrize('counts', [1, 2])
def test_distillation_weight_goes_from_start_to_end(counts, tmp_path, tiny_pretrained, monkeypatch):
    """Equal factors from step to step of the optimizer, and the loss is weighted by them."""
    from mmcfmask.models import CLIPDistillHead

    original, seen = CLIPDistillHead.distill_loss, []

    def look(self, student, teacher_features, teacher):
        loss = original(self, student, teacher_features, teacher)
        distance = (student - teacher_features).square().mean().clamp(min=1e-12)
        seen.append((self.distill_weight, (loss['loss_distill'] / distance).item()))
        return loss

    monkeypatch.setattr(CLIPDistillHead, 'distill_loss', look)
    cfg = config(tmp_path, tiny_pretrained, **{'train_cfg.max_epochs': 2, 'train_dataloader.batch_size': 8 // counts})
    cfg.custom_hooks.append(dict(type='DistillWeightHook', start=8.0, end=2.0))
    train(cfg)
    assert len(seen) == 10 * counts
    for batch, (weight, measured) in enumerate(seen):
        step = batch // counts
        assert weight == pytest.approx(8 * 0.25 ** (step / 10))
        assert step == 0 or measured == pytest.approx(weight, rel=1e-3)  # at the first step student and teacher are one


@pytest.mark.parametrize('counts', [1, 2])
def test_loss_terms_know_how_far_the_run_is(counts, tmp_path, tiny_pretrained, monkeypatch):
    """In steps of the optimizer, of which both runs make 10."""
    from mmcfmask.models import CounterfactualDistillation

    original, progress, steps = CounterfactualDistillation.forward, [], []

    def look(self, step):
        progress.append(self.progress)
        return original(self, step)

    monkeypatch.setattr(CounterfactualDistillation, 'forward', look)
    monkeypatch.setattr(CounterfactualDistillation, 'after_step', lambda self, _, *numbers: steps.append(numbers))
    train(config(tmp_path, tiny_pretrained, **{'train_dataloader.batch_size': 8 // counts}))
    assert progress == pytest.approx([batch // counts / 10 for batch in range(10 * counts)])
    assert steps == [(done, 10) for done in range(1, 11)]


def test_distillation_weight_says_what_is_wrong(tmp_path, tiny_pretrained):
    with pytest.raises(ValueError, match='start=0.0, end=1.0.*above 0'):
        DistillWeightHook(start=0.0, end=1.0)
    cfg = config(tmp_path, tiny_pretrained, 'ft')
    cfg.custom_hooks.append(dict(type='DistillWeightHook', start=8.0, end=2.0))
    with pytest.raises(ValueError, match='leave the hook out of custom_hooks'):
        train(cfg)


def test_nan_loss_stops_the_run(tmp_path, tiny_pretrained, monkeypatch):
    from mmcfmask.models import CLIPDistillHead

    original, calls = CLIPDistillHead.distill_loss, []

    def nan_at_seventh(self, *args):
        calls.append(1)
        loss = original(self, *args)
        return {name: value * float('nan') for name, value in loss.items()} if len(calls) == 7 else loss

    monkeypatch.setattr(CLIPDistillHead, 'distill_loss', nan_at_seventh)
    with pytest.raises(FloatingPointError) as error:
        train(config(tmp_path, tiny_pretrained))
    message = str(error.value)
    assert 'iteration 7 (epoch 2)' in message and 'loss_distill = nan' in message and 'loss_cls = ' in message
    assert str(tmp_path / 'epoch_1.pth') in message
    assert not (tmp_path / 'epoch_2.pth').exists()


def test_gradient_that_is_not_finite_stops_the_run(tmp_path, tiny_pretrained, monkeypatch):
    """The loss is finite, but the weights are not any more: they must not become a checkpoint."""
    original, calls = torch.nn.utils.clip_grad_norm_, []

    def nan_at_fifth(parameters, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            parameters[0].grad.fill_(float('nan'))
        return original(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', nan_at_fifth)
    with pytest.raises(
        FloatingPointError, match=r'iteration 5 \(epoch 1\): loss.* = .*grad_norm = nan; no checkpoint was saved before'
    ):
        train(config(tmp_path, tiny_pretrained))
    assert not list(tmp_path.glob('*.pth'))
