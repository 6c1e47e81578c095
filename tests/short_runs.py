"""Whole runs of a few iterations on the built-in benchmark, with a random tower."""

import json
from pathlib import Path

from mmengine.config import Config
from oracle import RUNS

from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint

ROOT = Path(__file__).parents[1]


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


def config(work_dir, pretrained=None, method='cfmask', **options):
    cfg = Config.fromfile(str(ROOT / 'configs' / 'shapes' / f'{method}.py'))
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
                seen[entry['step']] = entry['loss_cls'], entry.get('loss_distill')
    return seen


def weights(path):
    return check_checkpoint(str(path))['state_dict']


class Killed(Exception):
    pass
