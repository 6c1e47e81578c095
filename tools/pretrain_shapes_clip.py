"""Pre-train the mini CLIP of the built-in shapes benchmark from scratch, on a CPU, and write its weights.

    python tools/pretrain_shapes_clip.py

Model, tokenizer and loss are open_clip's. The pre-training split is rendered once into the work directory. The run
checkpoints itself: the same command continues where a killed one stopped. Without training, ``--eval-only`` prints the
zero-shot accuracies of the weights in ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch.nn.attention import SDPBackend, sdpa_kernel

import mmcfmask
from mmcfmask.datasets import shapes
from mmcfmask.files import atomic_write, write_json, write_tensors
from mmcfmask.output import run_tool

ASSETS = Path(mmcfmask.__file__).resolve().parent / 'assets'
MODEL_NAME = 'ShapesCLIP-ViT-8-64'
# Mean square of a feature dimension before L2 normalisation, as OpenAI's ViT-B/16 has it on photos (norm 10,
# width 512). Cosine logits do not depend on it, but a loss on raw features, such as feature distillation, does.
FEATURE_MEAN_SQUARE = 0.2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/shapes_clip'), help='images, checkpoints')
    parser.add_argument('--out', type=Path, default=ASSETS / f'{MODEL_NAME}.safetensors', help='weights to write')
    parser.add_argument('--images', type=int, default=shapes.SPLIT_SIZES['pretrain'])
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--lr', type=float, default=5e-4)
    parser.add_argument('--weight-decay', type=float, default=0.1)
    parser.add_argument('--warmup', type=int, default=300, help='warm-up steps')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes that render')
    parser.add_argument('--compile', action='store_true', help='torch.compile the image tower (needs a C++ compiler)')
    parser.add_argument('--eval-only', action='store_true')
    return parser.parse_args()


def _render_chunk(job: tuple[int, int, int]) -> tuple[int, np.ndarray, list[str]]:
    seed, start, stop = job
    images, captions = [], []
    for index in range(start, stop):
        image, _, scene = shapes.render('pretrain', seed, index)
        images.append(image)
        captions.append(shapes.caption(scene, shapes.image_rng('pretrain', seed, index, stream=1)))
    return start, np.stack(images), captions


def pretraining_data(work_dir: Path, count: int, seed: int, workers: int) -> tuple[np.ndarray, list[str]]:
    """Images (count, 64, 64, 3) uint8, memory-mapped, and their captions, rendered on first use."""
    sources = b''.join(path.read_bytes() for path in sorted(Path(shapes.__file__).parent.glob('*.py')))
    key = hashlib.sha256(sources).hexdigest()[:12]
    stem = work_dir / f'pretrain_{count}_seed{seed}_{key}'
    image_file, caption_file = stem.with_suffix('.npy'), stem.with_suffix('.json')
    if not caption_file.exists():  # written last
        images = np.lib.format.open_memmap(image_file, 'w+', np.uint8, (count, shapes.IMAGE_SIZE, shapes.IMAGE_SIZE, 3))
        captions = [''] * count
        jobs = [(seed, start, min(start + 500, count)) for start in range(0, count, 500)]
        with (
            multiprocessing.Pool(workers) as pool,
            Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress,
        ):
            task = progress.add_task('render', total=count)
            for start, block, texts in pool.imap_unordered(_render_chunk, jobs):
                images[start : start + len(block)] = block
                captions[start : start + len(block)] = texts
                progress.advance(task, len(block))
        images.flush()
        write_json(caption_file, captions, indent=None)
    return np.load(image_file, mmap_mode='r'), json.loads(caption_file.read_text())


def preprocess(images: np.ndarray) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 RGB to the normalised (B, 3, 64, 64) float32 that CLIP takes."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (pixels - mean) / std


@torch.no_grad()
def zero_shot_weights(model: torch.nn.Module) -> torch.Tensor:
    """(classes, D) unit vectors: per class the mean of the normalised embeddings of all prompts, normalised."""
    tokenizer = open_clip.get_tokenizer(MODEL_NAME)
    rows = []
    for name in shapes.SHAPES_CLASSES:
        text = model.encode_text(tokenizer([t.format(name) for t in shapes.SHAPES_TEMPLATES]), normalize=True)
        rows.append(torch.nn.functional.normalize(text.mean(0), dim=0))
    return torch.stack(rows)


@torch.no_grad()
def zero_shot_accuracy(model: torch.nn.Module, split: str, size: int | None = None, seed: int = 0) -> float:
    """Zero-shot accuracy on a split in percent."""
    weights = zero_shot_weights(model)
    size = size or shapes.SPLIT_SIZES[split]
    right = 0
    for start in range(0, size, 250):
        drawn = [shapes.render(split, seed, index) for index in range(start, min(start + 250, size))]
        logits = model.encode_image(preprocess(np.stack([image for image, _, _ in drawn]))) @ weights.T
        right += (logits.argmax(1) == torch.tensor([scene.label for _, _, scene in drawn])).sum().item()
    return 100 * right / size


@torch.no_grad()
def initialise_image_tower(visual: torch.nn.Module, images: np.ndarray) -> None:
    """Start the patch embedding as a whitening of image patches and the position embedding as 2-D sines and cosines.

    From open_clip's random start a tower this small sees flat colours only for its first 100,000 images: edges and
    positions, which make a shape, are a small part of what a token holds. Here all of them start at unit scale.
    """
    width, _, size, _ = visual.conv1.weight.shape
    patches = torch.nn.functional.unfold(preprocess(images), size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    values, vectors = values[-width:], vectors[:, -width:]
    # The 0.1 keeps what is mostly sensor noise small.
    visual.conv1.weight.copy_((vectors / (values + 0.1).sqrt()).T.view_as(visual.conv1.weight))

    side = shapes.IMAGE_SIZE // size
    frequency = 30 ** -torch.linspace(0, 1, width // 4)
    angle = torch.arange(side)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=-1)
    visual.positional_embedding[1:] = grid.flatten(0, 1)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train(model: torch.nn.Module, images: np.ndarray, captions: list[str], args: argparse.Namespace) -> None:
    """CLIP pre-training with open_clip's loss in bf16; leaves the trained weights in ``model``."""
    tokens = open_clip.get_tokenizer(MODEL_NAME)(captions)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)],
        lr=args.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    criterion = open_clip.ClipLoss()
    steps_per_epoch = len(images) // args.batch_size
    total = args.epochs * steps_per_epoch
    settings = {k: getattr(args, k) for k in ('images', 'epochs', 'batch_size', 'lr', 'weight_decay', 'warmup', 'seed')}

    checkpoint_file, step = args.work_dir / 'checkpoint.pth', 0
    if checkpoint_file.exists():
        checkpoint = torch.load(checkpoint_file, map_location='cpu', weights_only=True)
        if checkpoint['settings'] != settings:
            raise SystemExit(
                f'{checkpoint_file} is of a run with {checkpoint["settings"]}, not {settings}: '
                'give another --work-dir or delete it'
            )
        model.load_state_dict(checkpoint['model'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        step = checkpoint['step']
        print(f'continuing at step {step} of {total}')
    encode_image = torch.compile(model.encode_image) if args.compile else model.encode_image

    saved = reported = time.time()
    order_epoch, order = -1, None
    model.train()
    with Progress(*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task('train', total=total, completed=step)
        while step < total:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, np.random.default_rng([args.seed, epoch]).permutation(len(images))
            batch = np.sort(order[position * args.batch_size : (position + 1) * args.batch_size])
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(step, total, args.warmup, args.lr)
            # On so few tokens plain attention in bf16 is 1.5 times as fast as the fused kernel of the CPU.
            with torch.autocast('cpu', torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                image_features = torch.nn.functional.normalize(encode_image(preprocess(images[batch])), dim=-1)
                text_features = model.encode_text(tokens[torch.from_numpy(batch)], normalize=True)
            loss = criterion(image_features.float(), text_features.float(), model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            progress.advance(task)
            if step % 20 == 0 and time.time() - reported > 20:
                reported = time.time()
                progress.console.print(
                    f'step {step}/{total}  loss {loss.item():.3f}  logit scale {model.logit_scale.exp().item():.1f}'
                )
            if time.time() - saved > 90 or step == total:
                saved = time.time()
                write_tensors(
                    checkpoint_file,
                    dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, settings=settings),
                )
            if step % max(total // 10, 1) == 0:
                model.eval()
                progress.console.print(f'step {step}/{total}  zero-shot on val: {zero_shot_accuracy(model, "val"):.1f}')
                model.train()
    model.eval()


@torch.no_grad()
def rescale_features(model: torch.nn.Module, images: np.ndarray) -> None:
    """Scale ``visual.proj`` so that features before normalisation have a mean square of FEATURE_MEAN_SQUARE."""
    mean_square = model.encode_image(preprocess(images)).square().mean().item()
    model.visual.proj.mul_(math.sqrt(FEATURE_MEAN_SQUARE / mean_square))


def main() -> None:
    args = parse_args()
    open_clip.add_model_config(ASSETS / f'{MODEL_NAME}.json')
    torch.manual_seed(args.seed)
    if args.eval_only:
        model = open_clip.create_model(MODEL_NAME, pretrained=str(args.out))
    else:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        model = open_clip.create_model(MODEL_NAME)
        images, captions = pretraining_data(args.work_dir, args.images, args.seed, args.workers)
        initialise_image_tower(model.visual, images[:2000])
        train(model, images, captions, args)
        rescale_features(model, images[:1000])
        state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
        with atomic_write(args.out) as file:
            file.write(save(state))
        print(f'wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)')
        model = open_clip.create_model(MODEL_NAME, pretrained=str(args.out))  # what the users get: fp16 weights
    model.eval()
    for split in shapes.SPLITS[2:]:
        print(f'zero-shot {split:7s} {zero_shot_accuracy(model, split):5.1f}')


if __name__ == '__main__':
    run_tool(main)
