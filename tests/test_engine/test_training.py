"""Whole runs of a few iterations on the built-in benchmark, with a random tower."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from oracle import RUNS

from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.hooks import DistillWeightHook, RelativeEMAHook

ROOT = Path(__file__).parents[2]
SMALL = {
    'model.backbone.model_name': 'tiny-vit',
    'model.backbone.pretrained': None,
    'model.head.class_weights': None,
    'train_dataloader.batch_size': 8,
    'train_dataloader.dataset.size': 40,
    'val_dataloader.dataset.size': 10,
    'total_batch_size': 8,
    'train_cfg.max_epochs': 2,
    'train_cfg.type': 'ResumableEpochLoop',
    'default_hooks.logger.interval': 1,
    'env_cfg.cudnn_benchmark': False,
    'randomness.deterministic': True,
}


def config(work_dir, pretrained=None, **options):
    cfg = Config.fromfile(str(ROOT / 'configs' / 'shapes' / 'cfmask.py'))
    cfg.merge_from_dict({**SMALL, 'work_dir': str(work_dir), 'model.backbone.pretrained': pretrained, **options})
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline = pipeline
    cfg.launcher, cfg.experiment_name = 'none', f'resumable{next(RUNS)}'
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'CheckpointHook']
    return cfg


def train(cfg):
    set_gradient_accumulation(cfg, 1)
    return build_runner(cfg).train()


def losses(work_dir):
    """{iteration: (loss_cls, loss_distill)} of all logs below a work dir, later ones first."""
    seen = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss_cls' in entry:
                seen[entry['step']] = (entry['loss_cls'], entry['loss_distill'])
    return seen


def weights(path):
    return check_checkpoint(str(path))['state_dict']


class Killed(Exception):
    pass


@pytest.mark.parametrize('mask, fill', [('object', 'single'), ('random', 'multi')])
def test_resume_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_happened(
    tmp_path, tiny_pretrained, monkeypatch, mask, fill
):
    options = {'model.data_preprocessor.mask': mask, 'model.data_preprocessor.fill': fill}
    cfg = config(tmp_path / 'whole', tiny_pretrained, **options)
    train(cfg)

    from mmcfmask.engine.train_loop import ResumableEpochLoop

    original = ResumableEpochLoop.run_iter

    def killed_at_eighth(self, idx, data_batch):
        if self._iter == 7:
            raise Killed
        original(self, idx, data_batch)

    checkpoints = dict(type='CheckpointHook', by_epoch=False, interval=3)
    cfg = config(tmp_path / 'cut', tiny_pretrained, **options)
    cfg.custom_hooks.append(checkpoints)
    monkeypatch.setattr(ResumableEpochLoop, 'run_iter', killed_at_eighth)
    with pytest.raises(Killed):
        train(cfg)
    monkeypatch.setattr(ResumableEpochLoop, 'run_iter', original)
    cfg = config(tmp_path / 'cut', tiny_pretrained, resume=True, **options)
    train(cfg)

    whole, cut = losses(tmp_path / 'whole'), losses(tmp_path / 'cut')
    assert len(whole) == 10 and set(cut) == set(whole)
    assert cut == whole
    expected, got = weights(tmp_path / 'whole' / 'epoch_2.pth'), weights(tmp_path / 'cut' / 'epoch_2.pth')
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize('epoch', [1, 2])
def test_run_killed_in_a_validation_begins_with_it(tmp_path, tiny_pretrained, monkeypatch, epoch):
    """The checkpoint of an epoch is saved before its validation, the best one after it."""
    from mmengine.runner import ValLoop

    original, validated = ValLoop.run, []

    def killed(self):
        validated.append(self.runner.epoch)
        if self.runner.epoch == epoch and validated.count(epoch) == 1:
            raise Killed
        original(self)

    monkeypatch.setattr(ValLoop, 'run', killed)
    with pytest.raises(Killed):
        train(config(tmp_path, tiny_pretrained))
    train(config(tmp_path, tiny_pretrained, resume=True))
    assert validated == {1: [1, 1, 2], 2: [1, 2, 2]}[epoch]
    assert len(losses(tmp_path)) == 10 and (tmp_path / 'best.pth').is_file()


def test_epochs_end_with_an_optimizer_step(tmp_path, tiny_pretrained):
    """5 batches, 2 to a step: the last one is left out, so that a run resumed after an epoch goes on as the whole one."""
    options = {'train_dataloader.batch_size': 8, 'total_batch_size': 16}
    train(config(tmp_path / 'whole', tiny_pretrained, **options))
    cut = config(tmp_path / 'cut', tiny_pretrained, **options)
    cut.custom_hooks.append(dict(type='CheckpointHook', interval=1, filename_tmpl='copy_{}.pth'))
    train(cut)
    for name in 'epoch_2.pth', 'copy_2.pth':
        (tmp_path / 'cut' / name).unlink()
    train(
        config(
            tmp_path / 'cut', tiny_pretrained, resume=True, load_from=str(tmp_path / 'cut' / 'copy_1.pth'), **options
        )
    )
    whole, cut = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=True) for name in ('whole', 'cut'))
    assert whole['meta']['iter'] == 8 and {int(state['step']) for state in whole['optimizer']['state'].values()} == {4}
    assert all(torch.equal(cut['state_dict'][name], value) for name, value in whole['state_dict'].items())
    with pytest.raises(
        ValueError, match='has 40 images, fewer than one optimizer step of 48 per process: lower total_batch_size'
    ):
        train(config(tmp_path, tiny_pretrained, total_batch_size=48))


def test_resume_needs_epochs_of_the_same_length(tmp_path, tiny_pretrained):
    train(config(tmp_path, tiny_pretrained))
    for size, batches in ((4, 10), (16, 2)):
        cfg = config(
            tmp_path,
            tiny_pretrained,
            resume=True,
            total_batch_size=size,
            **{'train_dataloader.batch_size': size, 'train_cfg.max_epochs': 4},
        )
        with pytest.raises(
            ValueError, match=f'had 5 batches per epoch and process, this one has {batches}: resume with the same'
        ):
            train(cfg)


def test_old_checkpoints_are_deleted_after_a_resume_too(tmp_path, tiny_pretrained):
    """Two checkpoint hooks, each with its own two files; those of an earlier run are not touched."""

    def run(epochs, **options):
        cfg = config(
            tmp_path,
            tiny_pretrained,
            **{'train_cfg.max_epochs': epochs, 'default_hooks.checkpoint.max_keep_ckpts': 2, **options},
        )
        cfg.custom_hooks.append(
            dict(
                type='CheckpointHook',
                by_epoch=False,
                interval=2,
                max_keep_ckpts=2,
                filename_tmpl='resume_{}.pth',
                save_last=False,
            )
        )
        train(cfg)
        return sorted(path.name for path in tmp_path.glob('*_*.pth') if 'best' not in path.name)

    (tmp_path / 'epoch_99.pth').touch()
    assert run(3) == ['epoch_2.pth', 'epoch_3.pth', 'epoch_99.pth', 'resume_12.pth', 'resume_14.pth']
    assert run(4, resume=True) == ['epoch_3.pth', 'epoch_4.pth', 'epoch_99.pth', 'resume_18.pth', 'resume_20.pth']
    assert run(5, resume=True) == ['epoch_4.pth', 'epoch_5.pth', 'epoch_99.pth', 'resume_22.pth', 'resume_24.pth']


def test_resume_from_another_work_dir_deletes_nothing_there(tmp_path, tiny_pretrained):
    train(config(tmp_path / 'first', tiny_pretrained))
    best = tmp_path / 'first' / 'best.pth'
    state = torch.load(tmp_path / 'first' / 'epoch_2.pth', weights_only=True)
    state['message_hub']['runtime_info']['best_score'] = -1.0  # will be beaten
    torch.save(state, tmp_path / 'resumed.pth')
    cfg = config(
        tmp_path / 'second',
        tiny_pretrained,
        resume=True,
        load_from=str(tmp_path / 'resumed.pth'),
        **{'train_cfg.max_epochs': 3},
    )
    train(cfg)
    assert best.is_file() and (tmp_path / 'second' / 'best.pth').is_file()


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
            'model.data_preprocessor.mask': None,
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


def test_of_equally_accurate_checkpoints_the_likelier_is_the_best(tmp_path, tiny_pretrained, monkeypatch):
    """Also where the run was resumed in between."""
    from mmcfmask.evaluation import ShiftAccuracy

    found = iter(
        [
            (40.0, 0.5),
            (60.0, 0.9),
            (60.0, 0.8),  # a resumed run begins with the last validation
            (60.0, 0.8),
            (60.0, 0.85),
            (60.0, 0.85),
            (60.0, 0.79),
            (59.0, 0.1),
        ]
    )
    monkeypatch.setattr(
        ShiftAccuracy, 'evaluate', lambda self, size: dict(zip(('accuracy/top1', 'accuracy/nll'), next(found)))
    )
    best = []
    for epochs in 3, 4, 6:  # what is said of the run is read again from its checkpoint
        train(config(tmp_path, tiny_pretrained, resume=epochs > 3, **{'train_cfg.max_epochs': epochs}))
        best.append(check_checkpoint(str(tmp_path / 'best.pth'))['meta'])
    assert [(meta['epoch'], meta['best']['value']) for meta in best] == [(3, 60.0), (3, 60.0), (5, 60.0)]


def test_moving_average_counts_optimizer_steps(tmp_path, tiny_pretrained):
    """10 steps of 8 images, at once or in batches of 4: one average."""
    averages = []
    for batch in 8, 4:
        cfg = config(
            tmp_path / str(batch), tiny_pretrained, **{'train_dataloader.batch_size': batch, 'model.teacher': None}
        )
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


def test_distillation_weight_says_what_is_wrong(tmp_path, tiny_pretrained):
    with pytest.raises(ValueError, match='start=0.0, end=1.0.*above 0'):
        DistillWeightHook(start=0.0, end=1.0)
    cfg = config(tmp_path, tiny_pretrained)
    cfg.model.teacher = None
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


def test_bfloat16_run(tmp_path, tiny_pretrained):
    model = train(
        config(tmp_path, tiny_pretrained, **{'optim_wrapper.type': 'AutocastOptimWrapper', 'train_cfg.max_epochs': 1})
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(value < 100 for parts in losses(tmp_path).values() for value in parts)


@pytest.mark.parametrize('counts', [1, 4])
def test_sixty_steps_of_the_published_recipe(counts, tmp_path, tiny_pretrained, monkeypatch):
    """The Runner against the recipe as it is written down: AdamW, torch's OneCycleLR as it comes, the gradient of a
    step clipped once."""
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

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-4, total_steps=60, pct_start=0.02)
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
        if name.endswith('in_proj_bias'):  # of queries, keys and values; that of the keys has no gradient but noise
            parts = torch.arange(len(value)).view(3, -1)[[0, 2]].flatten()
        moved[name], apart[name] = ((value - other)[parts].norm().item() for other in (start[name], trained[name]))
    assert all(apart[name] < 1e-3 * moved[name] for name in moved)
    assert math.hypot(*apart.values()) < 1e-4 * math.hypot(*moved.values())


def test_training_set_smaller_than_a_batch_is_an_error(tmp_path, tiny_pretrained):
    with pytest.raises(ValueError, match='fewer than one batch of 8'):
        train(config(tmp_path, tiny_pretrained, **{'train_dataloader.dataset.size': 7}))


WORKER = """
import sys, json, torch
import torch.distributed as dist
import open_clip
open_clip.add_model_config(sys.argv[1])
from torch.nn.parallel import DistributedDataParallel
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
import mmcfmask
from mmcfmask.models.preprocessor import Counterfactual
dist.init_process_group('gloo')
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = MODELS.build(dict(
    type='CounterfactualClassifier', backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=sys.argv[2]),
    head=dict(type='CLIPDistillHead', num_classes=5), teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')])).train()
torch.manual_seed(0)
torch.nn.init.normal_(model.head.fc.weight)
images, counterfactuals = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)
labels = [DataSample().set_gt_label(i % 5) for i in range(8)]
share = slice(rank * 8 // world, (rank + 1) * 8 // world)
model.data_preprocessor.counterfactual = lambda x, grid, relevance: Counterfactual(counterfactuals[share], relevance > 0, False)
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
for step in range(2):
    optimizer.zero_grad()
    sum(wrapped(images[share], labels[share], mode='loss').values()).backward()
    if step == 0:
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
assert not any('teacher' in name for name, _ in wrapped.named_parameters())
torch.save(dict(grads=grads, weights=model.state_dict()), f'{sys.argv[3]}/{world}-{rank}.pt')
"""


def launch(script, processes, *args, **kwargs):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        f'--nproc_per_node={processes}',
        script,
        *map(str, args),
    ]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, **kwargs)


def test_two_processes_average_the_gradients_of_one(tmp_path, tiny_pretrained, tiny_towers):
    script = tmp_path / 'worker.py'
    script.write_text(WORKER)
    for processes in (1, 2):
        done = launch(str(script), processes, tiny_towers, tiny_pretrained, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ('1-0.pt', '2-0.pt', '2-1.pt'))
    for name, grad in one['grads'].items():
        torch.testing.assert_close(
            first['grads'][name],
            grad,
            rtol=1e-4,
            atol=1e-5 * grad.abs().max().item(),
            msg=lambda text, name=name: f'{name}: {text}',
        )
    assert all(torch.equal(second['weights'][name], value) for name, value in first['weights'].items())


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
        ValueError, match="classnames has 'circle' in place 1, but it is the label 0 of the dataset of train_dataloader"
    ):
        train(cfg)


FLYP_WORKER = """
import sys, torch
import torch.distributed as dist
import open_clip
open_clip.add_model_config(sys.argv[1])
from torch.nn.parallel import DistributedDataParallel
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
import mmcfmask
dist.init_process_group('gloo')
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = MODELS.build(dict(
    type='CounterfactualClassifier', backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=sys.argv[2]),
    head=dict(type='CLIPDistillHead', num_classes=3, cls_weight=0.),
    losses=[dict(type='FLYP', classnames=['ring', 'star', 'bolt'], templates=['a {}'])])).train()
images, labels = torch.randn(8, 3, 32, 32), [DataSample().set_gt_label(i % 3) for i in range(8)]
share = slice(rank * 8 // world, (rank + 1) * 8 // world)
wrapped = DistributedDataParallel(model)
sum(wrapped(images[share], labels[share], mode='loss').values()).backward()
torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, f'{sys.argv[3]}/{world}-{rank}.pt')
"""


def test_contrast_is_over_the_images_of_all_processes(tmp_path, tiny_pretrained, tiny_towers):
    script = tmp_path / 'worker.py'
    script.write_text(FLYP_WORKER)
    for processes in (1, 2):
        done = launch(str(script), processes, tiny_towers, tiny_pretrained, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ('1-0.pt', '2-0.pt', '2-1.pt'))
    assert any(name.startswith('losses.0.text.') for name in one)
    for name, grad in one.items():
        torch.testing.assert_close(
            first[name],
            grad,
            rtol=1e-4,
            atol=1e-5 * grad.abs().max().item(),
            msg=lambda text, name=name: f'{name}: {text}',
        )
        assert torch.equal(first[name], second[name])
