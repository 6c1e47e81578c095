"""Two processes share the images and get the class embeddings that one computes."""

import torch
from forks import launch

WORKER = """
import sys, torch
import torch.distributed as dist
from mmcfmask.compat import start_process_group_without_gpu
import open_clip
from mmpretrain.models.classifiers import ImageClassifier
from mmcfmask.datasets import FolderDataset
from mmcfmask.models.class_embeddings.build import build_class_weights

config, weights, images, out = sys.argv[1:]
open_clip.add_model_config(config)
start_process_group_without_gpu('pytorch')
classifier = ImageClassifier(
    backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=weights),
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[120.0] * 3, std=[60.0, 65.0, 70.0], to_rgb=True))
read = []
get = FolderDataset.__getitem__
FolderDataset.__getitem__ = lambda self, index: read.append(index) or get(self, index)
pipeline = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]
dataset = dict(type='FolderDataset', data_root=images, pipeline=pipeline)
part = dict(holdout=dict(fraction=0.3, part='train'))
means = dict(type='prototype', dataset=dataset, per_class=5, batch_size=2, num_workers=0)
probe = dict(type='linear_probe', dataset=dict(dataset, **part), strengths=[0.1, 1.0, 10.0], num_workers=0)
results = dict(prototype=build_class_weights(means, classifier), linear_probe=build_class_weights(probe, classifier))
results['read'] = torch.tensor(len(read))
torch.save(results, f'{out}/{dist.get_world_size()}-{dist.get_rank()}.pt')
"""


def test_two_processes_read_half_of_the_images_each(tmp_path, tiny_towers, tiny_pretrained, images, monkeypatch):
    (tmp_path / 'worker.py').write_text(WORKER)
    for processes in (1, 2):
        monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / f'cache{processes}'))
        done = launch(str(tmp_path / 'worker.py'), processes, tiny_towers, tiny_pretrained, images, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ('1-0.pt', '2-0.pt', '2-1.pt'))
    for name in ('prototype', 'linear_probe'):
        torch.testing.assert_close(first[name], one[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name])
    assert first['read'] == second['read'] <= one['read'] / 2 + 1.5  # 15 of the prototypes, 18 of the probe's two parts
    assert len(list((tmp_path / 'cache2').glob('*.safetensors'))) == len(
        list((tmp_path / 'cache1').glob('*.safetensors'))
    )
