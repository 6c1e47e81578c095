import pytest
from short_runs import config

from mmcfmask.engine.build import build_runner, set_gradient_accumulation


def header_of(text):
    """{name: text} of the lines of the header in a log."""
    lines = text[text.index('    data ') :].splitlines()
    return {line.split()[0]: line[14:] for line in lines if line.startswith('    ')}


@pytest.mark.parametrize('verbose', [False, True])
def test_a_training_begins_with_ten_lines(tmp_path, tiny_pretrained, capsys, verbose):
    cfg = config(tmp_path, tiny_pretrained, **{'total_batch_size': 16, 'randomness.seed': 3})
    set_gradient_accumulation(cfg, 1)
    runner = build_runner(cfg, verbose)
    runner.train()
    shown = capsys.readouterr().out
    header = header_of(shown)
    assert header['data'] == '40 training images, 10 classes, 10 validation images'
    assert header['model'].startswith('OpenCLIPBackbone tiny-vit (') and ' parameters' in header['model']
    assert header['loss'] == ('cross-entropy + 30 CounterfactualDistillation (mask object, fill single, value 0.3)')
    assert header['batch'] == '16 images = 1 process x 8 images x 2 accumulated batches'
    assert header['schedule'] == '2 epochs of 2 steps, AdamW with learning rate 0.0005'
    assert header['runs'] == 'on cpu in float32, seed 3'
    assert str(tmp_path) in header['writes'] and 'resumes' not in header
    settings = "dict(type='IterationSeedHook')"
    assert (settings in shown) == verbose and ('System environment' in shown) == verbose
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert settings in log and 'System environment' in log and header_of(log) == header


def test_a_resumed_training_says_where(tmp_path, tiny_pretrained, capsys):
    cfg = config(tmp_path, tiny_pretrained, 'ft')
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    capsys.readouterr()
    cfg = config(tmp_path, tiny_pretrained, 'ft')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'epoch_1.pth')
    set_gradient_accumulation(cfg, 1)
    build_runner(cfg).train()
    header = header_of(capsys.readouterr().out)
    assert header['resumes'] == f'at epoch 2, iteration 6, from {tmp_path}/epoch_1.pth'
    assert header['loss'] == 'cross-entropy'


def test_warnings_reach_the_console_while_the_runner_is_built(tmp_path, tiny_pretrained, capsys, monkeypatch):
    cfg = config(tmp_path, tiny_pretrained, 'ft')

    def warn(self, *args, **kwargs):
        self.logger.info('of no interest')
        self.logger.warning('of interest')

    monkeypatch.setattr('mmengine.runner.Runner._log_env', warn)
    build_runner(cfg).logger.info('built')
    shown = capsys.readouterr().out
    assert 'of interest' in shown and 'built' in shown and 'of no interest' not in shown
