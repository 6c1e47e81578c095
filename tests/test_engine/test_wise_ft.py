"""The line between pretrained and fine-tuned weights, on the built-in benchmark with a small tower."""

import json
import re
from pathlib import Path

import pytest
import torch
from oracle import RUNS

from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_soup import state_loader
from mmcfmask.engine.testing import prepare_test, skip_pretrained_weights
from mmcfmask.engine.wise_ft import parse_alphas, pretrained_weights
from mmcfmask.engine.wise_ft_results import TABLE, line_summary, save_interpolated, write_results
from mmcfmask.models.towers.adapters import holds_adapters
from mmcfmask.models.towers.loading import load_text_tower
from mmcfmask.reporting.tables import summary_markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def embeddings(tmp_path_factory):
    path = tmp_path_factory.mktemp('embeddings') / 'embeddings.pt'
    torch.save(
        torch.nn.functional.normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(3)), dim=1), path
    )
    return str(path)


@pytest.fixture
def config(tmp_path, tiny_pretrained, embeddings):
    """A config of the small tower; options as of --cfg-options."""

    def make(name='ft', work_dir='run', **options):
        cfg = load_config(
            str(ROOT / 'configs' / 'shapes' / f'{name}.py'),
            {
                'model.backbone.model_name': 'tiny-vit',
                'model.backbone.pretrained': tiny_pretrained,
                'work_dir': str(tmp_path / work_dir),
                'env_cfg.cudnn_benchmark': False,
            },
        )
        cfg.model.head.class_weights = dict(type='file', path=embeddings)
        cfg.test_dataloader = {name: cfg.test_dataloader[name] for name in ('test', 'r', 'sketch')}
        loaders = [*cfg.test_dataloader.values()]
        if cfg.get('train_dataloader'):
            loaders += [cfg.train_dataloader, cfg.val_dataloader]
            cfg.train_dataloader.batch_size, cfg.total_batch_size, cfg.train_cfg.max_epochs = 8, 8, 1
            cfg.optim_wrapper.optimizer.lr = 1e-2  # far from the start
        for loader in loaders:
            loader.dataset.pipeline, loader.dataset.size = [dict(type='Resize', scale=32), dict(type='PackInputs')], 40
        for loader in cfg.test_dataloader.values():
            loader.batch_size = 16  # uneven
        cfg.launcher, cfg.experiment_name = 'none', f'wise{next(RUNS)}'
        cfg.merge_from_dict(options)
        return cfg

    return make


@pytest.fixture
def checkpoint(config, tmp_path):
    cfg = config(work_dir='trained', val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.default_hooks.checkpoint.save_best = None
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    return str(tmp_path / 'trained' / 'epoch_1.pth')


def evaluated(cfg, path=None):
    """Metrics of an ordinary test."""
    cfg.load_from = path
    if path:
        skip_pretrained_weights(cfg.model)
    return build_runner(cfg).test()


def test_alphas():
    assert parse_alphas(['0:1:0.1']) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert parse_alphas(['1', '0', 0.5, '0.5']) == [0, 0.5, 1] == parse_alphas(['0:1:0.5'])
    assert parse_alphas(['0.2:0.4:0.05', '1']) == [0.2, 0.25, 0.3, 0.35, 0.4, 1]
    for bad in (['half'], ['0:1:0.3'], ['1:0:0.1'], ['0:1'], ['0:1:0']):
        with pytest.raises(ValueError, match='neither a number nor FIRST:LAST:STEP'):
            parse_alphas(bad)
    for bad in (['1.2'], ['-0.1'], ['nan'], []):
        with pytest.raises(ValueError, match=r'alphas must lie in \[0, 1\]'):
            parse_alphas(bad)


def test_every_alpha_equals_a_test_of_weights_that_were_interpolated_apart(config, checkpoint, tmp_path):
    start = pretrained_weights(config().model)
    end = check_checkpoint(checkpoint)['state_dict']
    assert set(start) == set(end) and not torch.equal(start['head.fc.weight'], end['head.fc.weight'])
    expected = {0.0: evaluated(config('zeroshot')), 1.0: evaluated(config(), checkpoint)}
    for alpha in (0.3, 0.5):
        path = str(tmp_path / f'{alpha}.pth')
        torch.save(dict(state_dict={name: (1 - alpha) * start[name] + alpha * end[name] for name in start}), path)
        expected[alpha] = evaluated(config(), path)

    cfg = config(load_from=checkpoint)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 0.3, 0.5, 1])
    runner = build_runner(cfg)
    metrics = runner.test()
    assert set(metrics) == {f'alpha={alpha:g}/{name}' for alpha, parts in expected.items() for name in parts}
    for alpha, parts in expected.items():
        got = {name: metrics[f'alpha={alpha:g}/{name}'] for name in parts}
        assert got == (parts if alpha in (0, 1) else pytest.approx(parts, rel=1e-5)), alpha
    assert metrics['alpha=0/r/nll'] != metrics['alpha=1/r/nll']
    assert all(torch.equal(value, end[name]) for name, value in runner.model.state_dict().items())  # as it was

    save_interpolated(runner.test_loop, 0.5, tmp_path / 'half.pth', dict(seed=0))
    saved = check_checkpoint(str(tmp_path / 'half.pth'))
    assert saved['meta'] == dict(seed=0, wise_ft_alpha=0.5)
    half = evaluated(config(), str(tmp_path / 'half.pth'))
    assert half == {name: metrics[f'alpha=0.5/{name}'] for name in half}


def test_bfloat16_uses_the_weights_of_its_alpha(config, checkpoint):
    """Autocast keeps copies of weights: those of one α must not serve the next."""
    expected = evaluated(config(**{'test_cfg.amp': True}), checkpoint)
    cfg = config(load_from=checkpoint, **{'test_cfg.amp': True})
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 1])
    metrics = build_runner(cfg).test()
    assert {name: metrics[f'alpha=1/{name}'] for name in expected} == expected
    assert metrics['alpha=0/r/nll'] != metrics['alpha=1/r/nll']


def test_what_is_written(config, checkpoint, tmp_path):
    cfg = config(load_from=checkpoint)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 0.5, 1])
    runner = build_runner(cfg)
    metrics = runner.test()
    results = write_results(runner.test_loop, tmp_path / 'out', 'configs/shapes/ft.py', checkpoint, 0)
    assert [path.name for path in results['written']] == [
        'wise_ft.json',
        'wise_ft.md',
        'metrics.json',
        'wise_ft.png',
        'wise_ft.pdf',
    ]
    line = json.loads((tmp_path / 'out' / 'wise_ft.json').read_text())
    assert line['default_alpha'] == 0.5 and [part['alpha'] for part in line['line']] == [0, 0.5, 1]
    assert line['line'][2]['metrics']['r/top1'] == metrics['alpha=1/r/top1'] and line['ood_average_over'] == [
        'r',
        'sketch',
    ]
    assert line['sets']['r']['images'] == 40 and line['checkpoint']['sha256'] and line['versions']['torch']
    # The one result is that of the default, in the form of a test.
    run = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert run['method'] == 'ft_wise_ft' and run['wise_ft_alpha'] == 0.5 and run['format'] == 1
    assert run['ood_average'] == dict(top1=metrics['alpha=0.5/ood_average/top1'], over=['r', 'sketch'])
    assert (
        run['sets']['sketch']['metrics']['nll'] == metrics['alpha=0.5/sketch/nll']
        and run['sets']['sketch']['per_class']
    )
    # Bold is the row of the default, and no other.
    table = (tmp_path / 'out' / 'wise_ft.md').read_text()
    rows = [row for row in table.splitlines() if row.startswith('| ')]
    assert rows[0] == '| α | ID (test) | r | sketch | OOD avg |' and [row.count('**') for row in rows[1:]] == [0, 8, 0]
    assert 'α = 0.5 (bold) is the default to report' in table


def test_start_without_a_head_is_refused(config, checkpoint):
    cfg = config(load_from=checkpoint)
    cfg.model.head.class_weights = None
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 1])
    with pytest.raises(ValueError, match='class_weights=None leaves the head random'):
        build_runner(cfg).test()


def test_hook(config, tmp_path):
    hook = dict(type='WiSEFTHook', alphas=[0, 0.5, 1], save=0.5)
    cfg = config(**{'train_cfg.max_epochs': 2})
    cfg.custom_hooks.append(hook)
    set_gradient_accumulation(cfg, 1)
    runner = build_runner(cfg)
    runner.train()
    folder = tmp_path / 'run' / 'wise_ft'
    assert {path.name for path in folder.iterdir()} == {
        'wise_ft.json',
        'wise_ft.md',
        'wise_ft.png',
        'wise_ft.pdf',
        'metrics.json',
        'wise_ft_0.5.pth',
    }
    line = json.loads((folder / 'wise_ft.json').read_text())
    best = tmp_path / 'run' / 'best.pth'
    assert line['checkpoint']['path'] == str(best) and line['seed'] == 0
    for part, path in zip(line['line'], (None, folder / 'wise_ft_0.5.pth', best)):
        assert part['metrics'] == evaluated(config('ft' if path else 'zeroshot', 'again'), path and str(path))
    # The model is left as training ended.
    last = check_checkpoint(str(tmp_path / 'run' / 'epoch_2.pth'))['state_dict']
    assert all(torch.equal(value, last[name]) for name, value in runner.model.state_dict().items())


def test_hook_takes_the_moving_average(config, tmp_path):
    """As the checkpoint of the last epoch does."""
    cfg = config(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.default_hooks.checkpoint.save_best = None
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='WiSEFTHook', alphas=[1], save=1)]
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    saved = check_checkpoint(str(tmp_path / 'run' / 'epoch_1.pth'))
    end = check_checkpoint(str(tmp_path / 'run' / 'wise_ft' / 'wise_ft_1.pth'))['state_dict']
    assert end.keys() == saved['state_dict'].keys()
    assert all(torch.equal(value, saved['state_dict'][name]) for name, value in end.items())
    assert not torch.equal(end['head.fc.weight'], saved['ema_state_dict']['module.head.fc.weight'])


ADAPTERS = [
    ({'model.backbone.lora': dict(rank=2, alpha=4.0)}, r'mlp.*weight|proj_?\w*\.?weight|^head'),
    ({'model.backbone.r_adapter': {}}, r'mlp.c_proj|out_proj.weight|^head'),
    ({'model.backbone.r_adapter': dict(rank=2)}, r'mlp.c_proj|out_proj.weight|^head'),
]


@pytest.mark.parametrize('adapters, changed', ADAPTERS)
def test_adapters_are_scaled(config, tmp_path, adapters, changed):
    """The line of merged weights, tested apart, by the tool's loop and by the hook; with a moving average. α W in place
    of W is what R-Adapter calls re-scaling."""
    cfg = config(**adapters)
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.1), dict(type='WiSEFTHook', alphas=[0.3], save=0.3)]
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    best = str(tmp_path / 'run' / 'best.pth')
    saved = check_checkpoint(best)
    by_hook = json.loads((tmp_path / 'run' / 'wise_ft' / 'wise_ft.json').read_text())['line'][0]['metrics']

    start = pretrained_weights(config().model)
    end = state_loader(config(**adapters).model, {best: saved})(best)
    assert start.keys() == end.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if re.search(changed, name)}
    path = str(tmp_path / 'merged.pth')
    torch.save(dict(state_dict={name: 0.7 * start[name] + 0.3 * end[name] for name in start}), path)
    expected = evaluated(config(), path)
    assert by_hook == pytest.approx(expected, rel=1e-4)

    cfg = config(**adapters)
    prepare_test(cfg, best, keep_pretrained=True)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 0.3, 1])
    runner = build_runner(cfg)
    metrics = runner.test()
    assert {name: metrics[f'alpha=0.3/{name}'] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert metrics['alpha=0/r/nll'] == pytest.approx(evaluated(config('zeroshot'))['r/nll'])
    weights = check_checkpoint(str(tmp_path / 'run' / 'wise_ft' / 'wise_ft_0.3.pth'))['state_dict']
    assert weights.keys() == saved['state_dict'].keys() and holds_adapters(weights)


PROMPTS = dict(type='text', classnames=[f'thing {n}' for n in range(10)], templates=['a {}'])


def test_hook_after_flyp(config, tmp_path):
    """The text tower, which only training has, is not on the line."""
    cfg = config('flyp')
    cfg.model.head.class_weights = PROMPTS
    cfg.custom_hooks.append(dict(type='WiSEFTHook', alphas=[0, 1], save=1))
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    best = tmp_path / 'run' / 'best.pth'
    best = check_checkpoint(str(best))['state_dict']
    end = check_checkpoint(str(tmp_path / 'run' / 'wise_ft' / 'wise_ft_1.pth'))['state_dict']
    assert any(name.startswith('losses.') for name in best)
    assert end.keys() == {name for name in best if not name.startswith('losses.')}
    assert all(torch.equal(value, best[name]) for name, value in end.items())


def test_flyp_mixes_text_towers(config, tmp_path, tiny_pretrained):
    """The head of an α is made of the mixed text tower, by the hook and by the tool's loop; it is not the mixture of
    two heads."""
    cfg = config('flyp')
    cfg.model.head.class_weights = PROMPTS
    cfg.custom_hooks.append(dict(type='WiSEFTHook', alphas=[0.5], save=0.25))  # saved is another than is tested
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    path = str(tmp_path / 'run' / 'best.pth')
    best = check_checkpoint(path)['state_dict']

    cfg = config('flyp')
    cfg.model.head.class_weights = PROMPTS
    prepare_test(cfg, path, keep_pretrained=True)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=[0, 0.25, 0.5, 1])
    runner = build_runner(cfg)
    metrics = runner.test()
    assert all(torch.equal(value, best[name]) for name, value in runner.model.state_dict().items())  # as it was
    by_hook = json.loads((tmp_path / 'run' / 'wise_ft' / 'wise_ft.json').read_text())['line'][0]['metrics']
    assert by_hook == pytest.approx(
        {name.partition('/')[2]: value for name, value in metrics.items() if name.startswith('alpha=0.5/')}
    )

    start, tokenizer = load_text_tower('tiny-vit', tiny_pretrained)
    for name, value in start.state_dict().items():  # by hand
        if value.is_floating_point():
            value.copy_(0.75 * value + 0.25 * best[f'losses.0.text.{name}'])
    with torch.no_grad():
        texts = torch.nn.functional.normalize(
            start.encode_text(tokenizer([f'a {name}' for name in PROMPTS['classnames']])), dim=1
        )
    expected = start.logit_scale.exp().detach() * texts
    save_interpolated(runner.test_loop, 0.25, tmp_path / 'quarter.pth')
    for saved in tmp_path / 'quarter.pth', tmp_path / 'run' / 'wise_ft' / 'wise_ft_0.25.pth':
        torch.testing.assert_close(
            check_checkpoint(str(saved))['state_dict']['head.fc.weight'], expected, rtol=1e-4, atol=1e-4
        )
    mixed_heads = torch.lerp(runner.test_loop.pretrained['head.fc.weight'], best['head.fc.weight'], 0.25)
    assert (mixed_heads - expected).norm() > 1e-3 * expected.norm()

    cfg = config('flyp')
    with pytest.raises(ValueError, match='quarter.pth has no text tower, which makes the head'):
        prepare_test(cfg, str(tmp_path / 'quarter.pth'), keep_pretrained=True)


def test_hook_says_what_is_wrong_before_training(config):
    cfg = config()
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.custom_hooks.append(dict(type='WiSEFTHook'))
    set_gradient_accumulation(cfg, 1)
    with pytest.raises(ValueError, match='WiSEFTHook needs test_dataloader'):
        build_runner(cfg).train()
    cfg = config(**{'test_cfg.shifts': ['rr']})
    cfg.custom_hooks.append(dict(type='WiSEFTHook'))
    set_gradient_accumulation(cfg, 1)
    with pytest.raises(ValueError, match="no such shift: 'rr'"):
        build_runner(cfg).train()


def test_sets_with_groups_are_no_part_of_the_average():
    groups = {'groups/top1': 70.0, 'groups/worst_group': 40.0, 'groups/group_average': 80.0}
    metrics = {'test/top1': 90.0, 'r/top1': 50.0, **groups}
    line = dict(
        line=[dict(alpha=alpha, metrics=metrics) for alpha in (0.0, 0.5)], id_set='test', ood_average_over=['r']
    )
    table = summary_markdown(line_summary(line), **TABLE).splitlines()[:4]
    header, *rows = [row.strip('| ').split(' | ') for row in table]
    assert header == ['α', 'ID (test)', 'r', 'OOD avg', 'groups', 'Worst group', 'Weighted avg']
    assert rows[1] == ['0', '90.0', '50.0', '50.0', '70.0', '40.0', '80.0']
    assert rows[2] == ['0.5', *(f'**{value}**' for value in ('90.0', '50.0', '50.0', '70.0', '40.0', '80.0'))]
