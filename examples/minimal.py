"""Robust fine-tuning with counterfactual masked images (arXiv 2303.03052) in a plain PyTorch loop.

`python examples/minimal.py` fine-tunes the built-in small CLIP on rendered shapes, without a download. For your own
model, replace the tower, the class names and the data; the three functions from mmcfmask stay.
"""

import copy

import open_clip
import torch
import torch.nn.functional as F

from mmcfmask import patch_mask, refill, relevance_map
from mmcfmask.datasets.shapes import SHAPES_CLASSES, SHAPES_TEMPLATES, ShapesDataset
from mmcfmask.models.towers.loading import ASSETS


class Classifier(torch.nn.Module):
    def __init__(self, backbone, weight):
        super().__init__()
        self.backbone, self.weight = backbone, torch.nn.Parameter(weight)

    def forward(self, images):
        return F.normalize(self.backbone(images), dim=-1) @ self.weight.T


def load(split, size):
    """Normalised images and labels. Split 'test' is in distribution, 'a' has the backgrounds of other classes."""
    items = list(ShapesDataset(split, size))
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    images = torch.stack([torch.from_numpy(item['img']).permute(2, 0, 1) / 255 for item in items])
    return (images - mean) / std, torch.tensor([item['gt_label'] for item in items])


def main(steps=40, test_size=500, weight=30.0):
    torch.manual_seed(0)
    clip = open_clip.create_model('ShapesCLIP-ViT-8-64', pretrained=f'{ASSETS}/ShapesCLIP-ViT-8-64.safetensors')
    tokenizer = open_clip.get_tokenizer('ShapesCLIP-ViT-8-64')
    templates = [template.format for template in SHAPES_TEMPLATES]
    with torch.no_grad():  # the zero-shot head: the logit scale times the mean text embedding of each class
        text = clip.logit_scale.exp() * open_clip.build_zero_shot_classifier(clip, tokenizer, SHAPES_CLASSES, templates)
    student = Classifier(clip.visual, text.T)
    teacher = copy.deepcopy(clip.visual).eval().requires_grad_(False)

    def test(when):
        with torch.no_grad():
            right = {name: (student(x).argmax(1) == y).float().mean() for name, (x, y) in tests.items()}
        print(f'{when}: ' + ', '.join(f'{name} {100 * value:.1f} %' for name, value in right.items()))

    tests = {'ID': load('test', test_size), 'OOD': load('a', test_size)}
    images, labels = load('train', 1000)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.1)
    test('zero-shot')
    for step in range(1, steps + 1):
        batch = torch.randperm(len(images))[:32]
        x, y = images[batch], labels[batch]
        # Cut out the patches that show the object, and fill the hole from another image of the batch.
        mask = patch_mask(relevance_map(student, x, y), 'object', 0.3)
        counterfactual = refill(x, mask, 'single')
        # On the counterfactual images the student must keep the features of the pretrained teacher.
        classification = F.cross_entropy(student(x), y)
        distillation = F.mse_loss(student.backbone(counterfactual), teacher(counterfactual))
        optimizer.zero_grad()
        (classification + weight * distillation).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step == steps:
            print(f'step {step}: cross-entropy {classification:.3f}, distillation {distillation:.4f}')
    test('fine-tuned')


if __name__ == '__main__':
    main()
