"""Whole runs of a few iterations: steps, accumulation, checkpoints, precision."""

import json
import math

import pytest
import torch
from short_runs import config, losses, train, weights

from mmcfmask.engine.build import build_runner, set_gradient_accumulation


def test_checkpoint_is_plain_and_without_teacher(tmp_path, tiny_pretrained):
    cfg = config(tmp_path, tiny_pretrained, **{'train_cfg.max_epochs': 1})
    model = train(cfg)
    assert model.teacher is not None
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert set(checkpoint['state_dict']) == {
        f'backbone.visual.{name}' for name in model.backbone.visual.state_dict()
    } | {'head.fc.weight', 'head.fc.bias'}
    assert len(checkpoint['optimizer']['state']) == len(list(model.parameters()))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        'best.pth',
        'cfmask.py',
        'epoch_1.pth',
        'last_checkpoint',
    ]


def test_accumulation_equals_the_big_batch(tmp_path, tiny_pretrained):
    """Without counterfactuals (whose donors come from the batch at hand), 4 x 2 images give the step of 1 x 8."""
    results = []
    for batch in (8, 2):
        options = {
            'train_dataloader.batch_size': batch,
            'train_cfg.max_epochs': 1,
            'model.losses': [dict(type='Distillation')],
            'train_dataloader.dataset.size': 8,
            'optim_wrapper.optimizer.type': 'SGD',
            'param_scheduler': None,
        }
        cfg = config(tmp_path / str(batch), tiny_pretrained, **options)
        cfg.optim_wrapper.optimizer.pop('betas')
        set_gradient_accumulation(cfg, 1)
        assert cfg.optim_wrapper.accumulative_counts == 8 // batch
        build_runner(cfg).train()
        results.append(weights(tmp_path / str(batch) / 'epoch_1.pth'))
    start = torch.load(tiny_pretrained, weights_only=True)['visual.proj']
    assert (results[0]['backbone.visual.proj'] - start).abs().max() > 1e-6
    for name, value in results[0].items():
        torch.testing.assert_close(
            results[1][name], value, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_bfloat16_run(tmp_path, tiny_pretrained):
    model = train(
        config(tmp_path, tiny_pretrained, **{'optim_wrapper.type': 'AutocastOptimWrapper', 'train_cfg.max_epochs': 1})
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(value < 100 for parts in losses(tmp_path).values() for value in parts)


def test_context_terms_with_accumulation_and_bfloat16(tmp_path, tiny_pretrained):
    own = dict(counterfactual=dict(mask='context', mask_share=0.6, donors='other_class'))
    options = {
        'optim_wrapper.type': 'AutocastOptimWrapper',
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 4,
        'model.losses': [dict(type='CounterfactualCrossEntropy', **own), dict(type='ContextInvariance', **own)],
    }
    cfg = config(tmp_path, tiny_pretrained, 'ft', **options)
    model = train(cfg)
    assert cfg.optim_wrapper.accumulative_counts == 2 and model.teacher is None
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [entry for entry in entries if 'loss_invariance' in entry]
    assert len(steps) == 10
    for entry in steps:
        parts = [entry[name] for name in ('loss_cls', 'loss_counterfactual', 'loss_invariance')]
        assert all(part > 0 for part in parts) and entry['loss'] == pytest.approx(sum(parts), rel=1e-3)


@pytest.mark.parametrize('counts', [1, 4])
def test_sixty_steps_of_the_published_recipe(counts, tmp_path, tiny_pretrained, monkeypatch):
    """The Runner against the recipe as it is written down: AdamW, torch's own OneCycleLR, the gradient of a step
    clipped once."""
    from mmcfmask.engine.train_loop import ResumableEpochLoop

    original, batches, logged = ResumableEpochLoop.run_iter, [], []

    def run_iter(self, idx, data_batch):
        original(self, idx, data_batch)
        batches.append(data_batch)
        logged.append(self.runner.message_hub.get_scalar('train/lr').current())

    monkeypatch.setattr(ResumableEpochLoop, 'run_iter', run_iter)
    options = {
        'train_cfg.max_epochs': 12,
        'train_cfg.val_interval': 12,
        'train_dataloader.batch_size': 8 // counts,
        'model.data_preprocessor.mask': 'random',
    }  # patches that no rounding of a relevance can change
    cfg = config(tmp_path, tiny_pretrained, **options)
    set_gradient_accumulation(cfg, 1)
    runner = build_runner(cfg)
    start = {name: value.clone() for name, value in runner.model.state_dict().items()}
    model = runner.train()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start)
    model.train()

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-4, total_steps=60, pct_start=0.02)
    rates = []
    for step in range(60):
        optimizer.zero_grad()
        for index in range(step * counts, (step + 1) * counts):
            torch.manual_seed(index)  # what IterationSeedHook makes of seed 0
            losses = model(**model.data_preprocessor(batches[index], True), mode='loss')
            ((losses['loss_cls'] + losses['loss_distill']) / counts).backward()
            rates.append(optimizer.param_groups[0]['lr'])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert len(batches) == 60 * counts and logged == pytest.approx(rates)
    moved, apart = {}, {}
    for name, value in model.state_dict().items():
        parts = slice(None)
        if name.endswith(
            'in_proj_bias'
        ):  # of queries, keys and values; the bias of the keys has only noise as gradient
            parts = torch.arange(len(value)).view(3, -1)[[0, 2]].flatten()
        moved[name], apart[name] = ((value - other)[parts].norm().item() for other in (start[name], trained[name]))
    assert all(apart[name] < 1e-3 * moved[name] for name in moved)
    assert math.hypot(*apart.values()) < 1e-4 * math.hypot(*moved.values())


def test_training_set_smaller_than_a_batch_is_an_error(tmp_path, tiny_pretrained):
    with pytest.raises(ValueError, match='fewer than one batch of 8'):
        train(config(tmp_path, tiny_pretrained, **{'train_dataloader.dataset.size': 7}))


def test_wrong_classes_stop_before_the_first_batch(tmp_path, tiny_pretrained):
    with pytest.raises(
        ValueError, match='train_dataloader has 10 classes .circle, square.* but model.head.num_classes=7'
    ):
        train(config(tmp_path, tiny_pretrained, **{'model.head.num_classes': 7}))
    cfg = config(tmp_path, tiny_pretrained)
    names = ['square', 'circle', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie']
    cfg.model.head.class_weights = dict(
        type='text', classnames=names, templates=['{}'], cache_dir=str(tmp_path / 'cache')
    )
    with pytest.raises(
        ValueError,
        match="classnames has 'circle' in place 1, but it has the label 0 in the dataset of train_dataloader",
    ):
        train(cfg)
