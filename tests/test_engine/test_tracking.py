"""Logging to trackers."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from short_runs import config, train, weights

from mmcfmask.engine.tracking import TRACKERS, CounterfactualPictureHook, add_profiler, add_trackers, to_pixels
from mmcfmask.errors import UserError
from mmcfmask.reporting.style import new_figure


def test_a_run_in_tensorboard_is_the_same_run(tmp_path, tiny_pretrained):
    """Metrics, losses and a picture of each epoch are logged, and the weights are those of a run without."""
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    plain, tracked = (config(tmp_path / name, tiny_pretrained) for name in ('plain', 'tracked'))
    add_trackers(tracked, ['tensorboard'])
    for cfg in (plain, tracked):
        train(cfg)
    expected, found = (weights(tmp_path / name / 'epoch_2.pth') for name in ('plain', 'tracked'))
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    (folder,) = {path.parent for path in (tmp_path / 'tracked').glob('**/events.out.tfevents*')}
    log = events.EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload()
    tags = log.Tags()
    assert {'loss_cls', 'loss_distill', 'accuracy/top1'} <= set(tags['scalars'])
    pictures = log.Images('counterfactual_images')
    assert [picture.step for picture in pictures] == [0, 1, 2]
    assert len({picture.encoded_image_string for picture in pictures}) == 3  # the map changes


@pytest.mark.parametrize('name', TRACKERS)
def test_backends_are_those_of_mmengine(name, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda package: package)
    cfg = config(tmp_path / 'my_run')
    add_trackers(cfg, [name, name])
    local, backend = cfg.visualizer.vis_backends
    assert (local['type'], backend['type']) == ('LocalVisBackend', TRACKERS[name][0])
    assert name == 'tensorboard' or 'my_run' in str(backend)
    assert cfg.custom_hooks[-1]['type'] == 'CounterfactualPictureHook'
    fine_tuned = config(tmp_path, method='ft')
    add_trackers(fine_tuned, [name])
    assert 'CounterfactualPictureHook' not in str(fine_tuned.custom_hooks)  # there is nothing to show


def test_trace_of_the_first_batches(tmp_path, tiny_pretrained):
    cfg = config(tmp_path, tiny_pretrained)
    add_profiler(cfg, 7)  # more than an epoch
    train(cfg)
    events = json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
    assert {'aten::linear', 'aten::mm'} & {event.get('name') for event in events}


def test_mistakes(tmp_path, monkeypatch):
    cfg = Config(dict(work_dir=str(tmp_path)))
    with pytest.raises(UserError, match='--track paper: choose tensorboard, wandb, mlflow'):
        add_trackers(cfg, ['paper'])
    monkeypatch.setattr('importlib.util.find_spec', lambda package: None)
    with pytest.raises(UserError, match=r"--track wandb needs the package wandb: pip install 'mmcfmask\[track\]'"):
        add_trackers(cfg, ['wandb'])
    with pytest.raises(UserError, match='num=1 must be at least 2'):
        CounterfactualPictureHook(num=1)


def test_pixels_of_a_figure():
    figure = new_figure((2.0, 1.0))
    figure.set_facecolor('#ff0000')
    pixels = to_pixels(figure, dpi=50)
    assert pixels.shape == (50, 100, 3) and pixels.dtype == np.uint8 and (pixels[0, 0] == (255, 0, 0)).all()
