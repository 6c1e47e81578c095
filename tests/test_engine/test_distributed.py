"""Two processes compute what one computes."""

import torch
from forks import launch

START = """
import sys, torch
import torch.distributed as dist
from mmcfmask.compat import start_process_group_without_gpu
import open_clip
open_clip.add_model_config(sys.argv[1])
from torch.nn.parallel import DistributedDataParallel
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
import mmcfmask
start_process_group_without_gpu('pytorch')
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
share = slice(rank * 8 // world, (rank + 1) * 8 // world)
"""

WORKER = (
    START
    + """
from mmcfmask.models.preprocessor import Counterfactual
model = MODELS.build(dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=sys.argv[2]),
    head=dict(type='CLIPDistillHead', num_classes=5), teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')])).train()
torch.manual_seed(0)
torch.nn.init.normal_(model.head.fc.weight)
images, counterfactuals = torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)
labels = [DataSample().set_gt_label(i % 5) for i in range(8)]
made = counterfactuals[share]
model.data_preprocessor.counterfactual = lambda x, grid, relevance: Counterfactual(made, relevance > 0, False)
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
)


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


FLYP_WORKER = (
    START
    + """
model = MODELS.build(dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=sys.argv[2]),
    head=dict(type='CLIPDistillHead', num_classes=3, cls_weight=0.),
    losses=[dict(type='FLYP', classnames=['ring', 'star', 'bolt'], templates=['a {}'])])).train()
images, labels = torch.randn(8, 3, 32, 32), [DataSample().set_gt_label(i % 3) for i in range(8)]
wrapped = DistributedDataParallel(model)
sum(wrapped(images[share], labels[share], mode='loss').values()).backward()
grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
torch.save(grads, f'{sys.argv[3]}/{world}-{rank}.pt')
"""
)


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
