import json
from pathlib import Path

import pytest
import torch
from forks import run_script
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from open_clip.transformer import VisionTransformer
from rich.console import Console

from mmcfmask.benchmarks import counting, evaluation, steps, training
from mmcfmask.errors import ConfigError
from mmcfmask.precision import multiplies_bfloat16

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / 'configs' / 'shapes' / 'cfmask.py')
AMP = multiplies_bfloat16('cpu')
CPU = torch.device('cpu')


@pytest.mark.parametrize('mask, fill', [('object', 'single'), ('context', 'single'), ('object', 'multi')])
@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
def test_naive_step_has_the_losses_and_gradients_of_the_fast_one(tiny_pretrained, name, mask, fill):
    model = (
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name=name, pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=5),
                teacher=dict(type='OpenCLIPTeacher'),
                losses=[dict(type='CounterfactualDistillation')],
                data_preprocessor=dict(mask=mask, fill=fill),
            )
        )
        .double()
        .train()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    results = []
    for naive in (True, False):
        torch.manual_seed(7)
        if naive:
            losses = steps.naive_losses(model, model.teacher.backbone.visual, images, labels)
        else:
            losses = model(images, [DataSample().set_gt_label(int(label)) for label in labels], mode='loss')
            losses = losses['loss_cls'], losses['loss_distill']
        sum(losses).backward()
        results.append((losses, [parameter.grad for parameter in model.parameters()]))
        model.zero_grad()
    (losses, grads), (fast_losses, fast_grads) = results
    assert all(loss > 0 for loss in losses)
    torch.testing.assert_close(fast_losses, losses, rtol=1e-6, atol=1e-6, check_dtype=False)  # distillation is float32
    for fast, grad in zip(fast_grads, grads):
        torch.testing.assert_close(fast, grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))


def test_operations_of_a_forward_pass(tiny_pretrained):
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
            head=dict(type='CLIPDistillHead', num_classes=5),
        )
    )
    width, tokens, patches, layers = 32, 17, 16, 3
    linear = layers * tokens * 12 * width**2  # qkv, output, two layers of the MLP
    attention = layers * 2 * tokens**2 * width
    ends = patches * 3 * 8 * 8 * width + width * 16  # patch embedding, projection
    assert steps.count_tower_flops(model) == 2 * (linear + attention + ends)


def test_published_operations():
    """ViT-B/16 at 224 pixels: 35.1 billion, without making its weights."""
    with torch.device('meta'):
        visual = VisionTransformer(
            image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_ratio=4, output_dim=512
        )
    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.visual, model.backbone.image_size = visual, (224, 224)
    assert steps.count_tower_flops(model) == pytest.approx(35.1e9, rel=2e-3)


def test_ratios_are_medians_of_the_rounds():
    seconds = {'counterfactual': [1.0, 2.0, 4.0], 'fine-tuning': [0.5, 1.0, 1.0], 'naive': [3.0, 8.0, 8.0]}
    result = training.summarize(seconds, rates=[80.0, 40.0, 20.0], flops=5.0, batch=1)
    assert result['ratios'] == {'of the arithmetic bound': 0.5, 'against naive': 3.0, 'cost over fine-tuning': 2.0}
    assert result['bound_seconds'] == 1.0 and result['images_per_second']['counterfactual'] == 0.5


@pytest.mark.slow
def test_training(capsys):
    cfg = steps.read_config(SHAPES, batch=4, amp=AMP)
    result = training.benchmark_training(cfg, CPU, steps=2)
    assert json.loads(json.dumps(result)) == result
    assert set(result['seconds']) == set(result['peak_memory']) == {'counterfactual', 'fine-tuning', 'naive'}
    assert set(result['ratios']) == {
        'of the arithmetic bound',
        'against naive',
        'cost over fine-tuning',
        'memory against naive',
    }
    assert all(value > 0 for part in ('seconds', 'peak_memory', 'ratios') for value in result[part].values())
    assert list(result['phases']) == list(steps.PHASES)
    assert all(result['phases'][name] > 0 for name in steps.PHASES if name != 'other')
    assert result['batch'] == 4 and result['amp'] is AMP and len(result['rounds']['seconds']['naive']) == 2
    training.show_training(result, Console())
    shown = capsys.readouterr().out
    assert 'where the time goes' in shown and 'against naive' in shown


def test_command(tmp_path):
    out = tmp_path / 'a' / 'count.json'
    command = (ROOT / 'tools' / 'benchmark.py', '--config', SHAPES, '--count', '--amp', '--batch', 4)
    shown = run_script(*command, '--out', out)
    assert json.loads(out.read_text())['card'] == 'H100' and 'ms on H100' in shown.stdout
    shown = run_script(*command, '--help').stdout
    assert f'--card {{{",".join(counting.CARDS)}}}' in shown


def test_count(capsys):
    result = counting.count_training_step(steps.read_config(SHAPES, batch=4, amp=True), 'A100')
    assert json.loads(json.dumps(result)) == result and list(result['phases']) == list(steps.PHASES)
    counting.show_count(result, Console())
    assert 'ms on A100' in capsys.readouterr().out
    # ShapesCLIP-ViT-8-64: 65 tokens, 5 layers, 128 wide; of the last block keys and values for all tokens, and the rest
    # for one.
    tokens, width, layers = 65, 128, 5
    whole = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    last = 2 * tokens * 2 * width**2 + 2 * 10 * width**2 + 2 * 2 * tokens * width
    patches, projection = 2 * 64 * 3 * 8**2 * width, 2 * width * 128
    forward = 4 * (patches + (layers - 1) * whole + last + projection)
    flops = {name: work['flops'] for name, work in result['phases'].items()}
    assert flops['clean forward'] == flops['masked forward'] == flops['teacher'] == forward
    assert flops['relevance'] < 1.2 * forward and 3.5 * forward < flops['backward'] < 4.3 * forward
    assert result['step']['flops'] == sum(flops.values())
    # Nothing that grows with the square of the batch, and no time below that of the largest part.
    twice = counting.count_training_step(steps.read_config(SHAPES, batch=8, amp=True), 'H200')['step']
    assert 1.9 < twice['flops'] / result['step']['flops'] < 2.1 and twice['kernels'] == result['step']['kernels']
    assert result['step']['seconds'] > result['step']['bytes'] / result['rates']['bytes']


LORA = str(ROOT / 'configs' / 'shapes' / 'cfmask_lora.py')


@pytest.mark.slow
@pytest.mark.slow
def test_adapters_are_timed_beside_all_weights(capsys):
    cfg = steps.read_config(LORA, batch=4)
    result = training.benchmark_training(cfg, CPU, steps=1, skip=['naive'])
    names = {'counterfactual', 'fine-tuning', 'adapters', 'adapter fine-tuning'}
    assert set(result['seconds']) == set(result['peak_memory']) == names
    assert {'time with adapters, of that without', 'memory with adapters, of that without'} <= set(result['ratios'])
    training.show_training(result, Console())
    assert 'adapter fine-tuning' in capsys.readouterr().out


def test_adapters_save_the_products_that_make_gradients_of_weights():
    """A third of the backward pass of this narrow tower; nothing else changes but by the small products."""
    full, lora = (counting.count_training_step(steps.read_config(path, batch=16))['phases'] for path in (SHAPES, LORA))
    assert 0.5 < lora['backward']['flops'] / full['backward']['flops'] < 0.7
    for phase in ('clean forward', 'masked forward', 'teacher', 'relevance'):
        assert 1 <= lora[phase]['flops'] / full[phase]['flops'] < 1.02, phase
    assert lora['optimizer']['bytes'] < 0.2 * full['optimizer']['bytes']


def test_real_loader_and_skipping():
    cfg = steps.read_config(SHAPES, ['train_dataloader.dataset.size=8'], batch=4)
    result = training.benchmark_training(cfg, CPU, steps=1, loader=True, skip=['naive', 'memory'])
    assert set(result['seconds']) == {'counterfactual', 'fine-tuning'} and not result['peak_memory']


def test_terms_with_images_of_their_own():
    losses = "model.losses=[dict(type='CounterfactualCrossEntropy', counterfactual=dict(mask='context'))]"
    options = ['train_dataloader.dataset.size=8', losses]
    cfg = steps.read_config(SHAPES.replace('cfmask.py', 'ft.py'), options, batch=4)
    result = training.benchmark_training(cfg, CPU, steps=1, skip=['naive', 'memory'])
    empty = {name for name in steps.PHASES if result['phases'][name] == 0}
    assert empty <= {'teacher', 'other'} and 'teacher' in empty
    with pytest.raises(ConfigError, match='alone, but the config has CounterfactualCrossEntropy: use --skip'):
        steps.Steps(cfg, CPU, ['naive'])


def test_config_without_the_step_is_refused():
    with pytest.raises(ConfigError, match='has no counterfactual training step'):
        steps.read_config(str(ROOT / 'configs' / 'shapes' / 'ft.py'))


def test_bfloat16_is_refused_where_it_is_slow(monkeypatch):
    monkeypatch.setattr('mmcfmask.engine.checks.model.multiplies_bfloat16', lambda device: device != 'cpu')
    with pytest.raises(ConfigError, match='--amp: this CPU has no instructions for bfloat16.*Leave it out'):
        training.benchmark_training(steps.read_config(SHAPES, amp=True), CPU)


def test_precision_of_the_teacher_is_the_config_s():
    assert steps.read_config(SHAPES, ['model.teacher.precision=bf16']).model.teacher.precision == 'bf16'
    assert steps.read_config(SHAPES).model.teacher.precision is None


@pytest.mark.parametrize('loader', [False, True])
def test_evaluation(capsys, loader):
    options = ['test_dataloader.test.dataset.size=8'] if loader else []
    result = evaluation.benchmark_evaluation(SHAPES, options, device=CPU, steps=1, batch=4, amp=True, loader=loader)
    assert json.loads(json.dumps(result)) == result
    assert set(result['images_per_second']) == {'test loop', 'bare forward', *(['loader'] if loader else [])}
    assert set(result['ratios']) == {'of the bare forward', *(['of the loader', 'of both in turn'] if loader else [])}
    assert all(value > 0 for part in ('images_per_second', 'ratios') for value in result[part].values())
    if loader:  # one round: its rates are the medians
        tested, computed, loaded = result['images_per_second'].values()
        assert result['ratios']['of both in turn'] == pytest.approx((1 / computed + 1 / loaded) / (1 / tested))
    evaluation.show_evaluation(result, Console())
    assert result['images'] == (8 if loader else 16) and 'of the bare forward' in capsys.readouterr().out
