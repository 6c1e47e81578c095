"""A model that reads the class from the pixels of an image, and image trees for it: it is known what it must score."""

import itertools

import numpy as np
import torch
from mmengine.model import BaseModel
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from PIL import Image

import mmcfmask  # noqa: F401
from mmcfmask.datasets import FolderDataset, MissingSetError

RUNS = itertools.count()  # mmengine shares the log file of runs that start in one second and have one name
PIPELINE = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


def save_image(path, index, noise=0):
    """An image that says ``index`` (of an output of the head) in its first pixel, and ``noise`` in its second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = (index // 256, index % 256, 0), (noise // 256, noise % 256, 0)
    Image.fromarray(pixels).save(path)


def write_tree(root, groups, per_class, wrong=0.0, seed=0):
    """``per_class`` images of every group in ``root/<class>``, each saying one of its group's outputs, or another with
    rate ``wrong``."""
    rng = np.random.default_rng(seed)
    outputs = sorted({index for group in groups for index in group})
    for label, group in enumerate(groups):
        for number in range(per_class):
            says = rng.choice(outputs if rng.random() < wrong else group)
            save_image(root / f'class{label:04d}' / f'{number}.png', int(says), int(rng.integers(1 << 16)))


def loader(root, batch_size=7, groups=None, workers=0, **settings):
    """Dataloader config of a tree."""
    metainfo = {} if groups is None else dict(metainfo=dict(label_groups=groups))
    return dict(
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='AvailableFolder', data_root=str(root), pipeline=PIPELINE, **metainfo, **settings),
    )


@DATASETS.register_module()
class AvailableFolder(FolderDataset):
    """A FolderDataset that may be missing, and may have a published size."""

    def __init__(self, data_root, published=None, skipped=0, **kwargs):
        from pathlib import Path

        if not Path(data_root).is_dir():
            raise MissingSetError(f'there is no {data_root}: get it from the shop')
        super().__init__(data_root, **kwargs)
        if published:
            self._metainfo['protocol'] = dict(published)
        self.num_skipped = getattr(self, 'num_skipped', 0) + skipped


@MODELS.register_module()
class Oracle(BaseModel):
    """Its highest logit is that of the output which the image says.

    Args:
        num_classes (int): Outputs of the head.
        distracted (Sequence[int]): Outputs whose logits are higher still, whatever the image shows.
        seed (int): Of the logits of all others, which depend on the image's noise.
        scores_only (bool): Give ``pred_score`` and no logits, as most heads do.
        height (float): The highest logit; all others are below 4.
    """

    def __init__(self, num_classes=1000, distracted=(), scores_only=False, height=5.0):
        super().__init__(dict(type='ClsDataPreprocessor', to_rgb=True))
        self.head = torch.nn.Linear(1, num_classes)  # DistributedDataParallel wants weights
        self.head.num_classes = num_classes
        self.distracted, self.scores_only, self.height = list(distracted), scores_only, height

    def forward(self, inputs, data_samples=None, mode='predict'):
        assert mode == 'predict' and not self.training and torch.is_inference_mode_enabled()
        pixels = inputs.long()
        index, noise = (pixels[:, 0, 0, i] * 256 + pixels[:, 1, 0, i] for i in (0, 1))
        logits = torch.stack(
            [
                torch.rand(self.head.num_classes, generator=torch.Generator().manual_seed(int(seed))) * 4
                for seed in noise
            ]
        )
        logits[torch.arange(len(logits)), index] = self.height + noise / 65536
        logits[:, self.distracted] = 20.0
        for sample, row in zip(data_samples, logits):
            if self.scores_only:
                sample.set_pred_score(row.softmax(dim=0))
            else:
                sample.pred_logits = row
        assert all(isinstance(sample, DataSample) for sample in data_samples)
        return data_samples


def config(sets, work_dir, model=None, evaluator=None, **test_cfg):
    """A config that tests the oracle on named sets, the first of which is in distribution."""
    return dict(
        experiment_name=f'oracle{next(RUNS)}',
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmcfmask', 'oracle']),
        launcher='none',
        work_dir=str(work_dir),
        model=dict(type='Oracle', **(model or {})),
        test_dataloader=sets,
        test_evaluator=evaluator or dict(type='ShiftAccuracy'),
        test_cfg=dict(type='MultiSetTestLoop', **{'id_set': next(iter(sets)), **test_cfg}),
        custom_hooks=[dict(type='CheckClassesHook')],
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
    )
