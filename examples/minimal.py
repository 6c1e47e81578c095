"""Robust fine-tuning with counterfactual masked images (arXiv 2303.03052) in a plain PyTorch loop.

Fine-tunes the built-in mini CLIP on rendered shapes, without download, in less than a minute on two CPU cores:

    python examples/minimal.py

For your own model: replace the tower, the class names and the data. The three functions from mmcfmask stay.
"""

import argparse
import copy

import open_clip
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from mmcfmask import patch_mask, refill, relevance_map
from mmcfmask.datasets.shapes import SHAPES_CLASSES, SHAPES_TEMPLATES, ShapesDataset
from mmcfmask.models.towers.loading import ASSETS


class Classifier(torch.nn.Module):
    """An image tower and a linear head on its normalised features."""

    def __init__(self, backbone, weight):
        super().__init__()
        self.backbone, self.weight = backbone, torch.nn.Parameter(weight)

    def logits(self, features):
        return F.normalize(features, dim=-1) @ self.weight.T

    def forward(self, images):
        return self.logits(self.backbone(images))


def load_split(split, size):
    """Normalised images and labels of a split; 'test' is in distribution, 'a' has the backgrounds of other classes."""
    dataset = ShapesDataset(split, size)
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    images = torch.stack([torch.from_numpy(dataset[i]['img']).permute(2, 0, 1) / 255 for i in range(size)])
    return TensorDataset((images - mean) / std, torch.tensor([dataset[i]['gt_label'] for i in range(size)]))


@torch.no_grad()
def accuracy(model, dataset):
    model.eval()
    return 100 * sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(dataset, 250)) / len(dataset)


def main(steps, test_size):
    torch.manual_seed(0)
    clip = open_clip.create_model('ShapesCLIP-ViT-8-64', pretrained=f'{ASSETS}/ShapesCLIP-ViT-8-64.safetensors')
    tokenizer = open_clip.get_tokenizer('ShapesCLIP-ViT-8-64')
    # Zero-shot head: the mean text embedding of each class over prompts, times the temperature of CLIP.
    with torch.no_grad():
        text = open_clip.build_zero_shot_classifier(
            clip, tokenizer, SHAPES_CLASSES, [template.format for template in SHAPES_TEMPLATES]
        )
        student = Classifier(clip.visual, (clip.logit_scale.exp() * text).T)
    teacher = copy.deepcopy(clip.visual).eval().requires_grad_(False)

    tests = {'ID': load_split('test', test_size), 'OOD': load_split('a', test_size)}
    print('before:', ', '.join(f'{name} {accuracy(student, data):.1f} %' for name, data in tests.items()))

    loader = DataLoader(load_split('train', 1000), batch_size=32, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.1)
    step = 0
    while step < steps:
        for images, labels in loader:
            student.train()
            # Cut out the object, where the student looks, and fill the hole from another image of the batch.
            relevance = relevance_map(student, images, labels)
            mask = patch_mask(relevance, 'object', 0.3)
            counterfactual = refill(images, mask, 'single')
            # On the counterfactual image the student must keep the features of the pre-trained teacher.
            classification = F.cross_entropy(student(images), labels)
            distillation = F.mse_loss(student.backbone(counterfactual), teacher(counterfactual))
            optimizer.zero_grad()
            (classification + 30 * distillation).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 10 == 0 or step == steps:
                print(f'step {step}: cross-entropy {classification:.3f}, distillation {distillation:.4f}')
            if step == steps:
                break
    print('after: ', ', '.join(f'{name} {accuracy(student, data):.1f} %' for name, data in tests.items()))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Fine-tune a mini CLIP robustly')
    parser.add_argument('--steps', type=int, default=40, help='training steps (default: 40)')
    parser.add_argument('--test-size', type=int, default=500, help='images per test set (default: 500)')
    main(**vars(parser.parse_args()))
