"""Pretraining of the small CLIP of the built-in benchmark. Model, tokenizer and loss are open_clip's."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..datasets import shapes
from ..errors import ConfigError
from ..files import atomic_write, write_json, write_tensors
from ..models.towers.loading import ASSETS, SHAPES_MODEL
from .checks.outputs import check_out, check_work_dir

# Mean square of a feature dimension before L2 normalisation, as in OpenAI's ViT-B/16 on photos (norm 10, width 512).
# Cosine logits do not depend on it, but a loss on raw features, such as feature distillation, does.
FEATURE_MEAN_SQUARE = 0.2
WEIGHTS = ASSETS / f'{SHAPES_MODEL}.safetensors'


@dataclass
class Settings:
    """What determines the weights: a run resumes only with the same settings."""

    images: int = shapes.SPLIT_SIZES['pretrain']
    epochs: int = 6
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.1
    warmup: int = 300
    seed: int = 0


def pretrain(
    settings: Settings, work_dir: Path, out: Path | None = None, workers: int = 1, compiled: bool = False
) -> Path:
    """Pre-train from scratch, and write the weights in fp16.

    Args:
        settings: What determines the weights.
        work_dir: Folder for rendered images and checkpoints; an interrupted run resumes from it.
        out: File for the weights; None for the one in the package.
        workers: Number of processes that render images.
        compiled: ``torch.compile`` the image tower, which needs a C++ compiler.

    Returns:
        Path: The file of the weights.

    Raises:
        ConfigError: The work dir holds a run with other settings.
        StorageError: The work dir or ``out`` cannot be written.
    """
    out = out or WEIGHTS
    check_work_dir(str(work_dir))
    check_out(str(out))
    torch.manual_seed(settings.seed)
    model = open_clip.create_model(SHAPES_MODEL)
    images, captions = read_pretraining_data(work_dir, settings.images, settings.seed, workers)
    initialise_image_tower(model.visual, images[:2000])
    train(model, images, captions, settings, work_dir, compiled)
    rescale_features(model, images[:1000])
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    with atomic_write(out) as file:
        file.write(save(state))
    return out


def evaluate(weights: Path | None = None) -> dict[str, float]:
    """Zero-shot accuracy of saved weights (None: of the package) in percent, on every evaluation split."""
    model = open_clip.create_model(SHAPES_MODEL, pretrained=str(weights or WEIGHTS)).eval()
    return {split: zero_shot_accuracy(model, split) for split in shapes.SPLITS[2:]}


def _render_chunk(job: tuple[int, int, int]) -> tuple[int, np.ndarray, list[str]]:
    seed, start, stop = job
    images, captions = [], []
    for index in range(start, stop):
        image, _, scene = shapes.render('pretrain', seed, index)
        images.append(image)
        captions.append(shapes.caption(scene, shapes.image_rng('pretrain', seed, index, stream=1)))
    return start, np.stack(images), captions


def read_pretraining_data(work_dir: Path, count: int, seed: int, workers: int) -> tuple[np.ndarray, list[str]]:
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
    tokenizer = open_clip.get_tokenizer(SHAPES_MODEL)
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
    """Initialise the patch embedding as a whitening of patches, and the position embedding as 2-D sines and cosines.

    After open_clip's random initialisation, a tower this small sees only flat colours for its first 100,000 images,
    because edges and positions, which make a shape, are a small part of a token. Here all have unit scale.
    """
    width, _, size, _ = visual.conv1.weight.shape
    patches = torch.nn.functional.unfold(preprocess(images), size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # in ascending order
    values, vectors = values[-width:], vectors[:, -width:]
    # The 0.1 keeps small values, which are mostly sensor noise, small.
    visual.conv1.weight.copy_((vectors / (values + 0.1).sqrt()).T.view_as(visual.conv1.weight))

    side = shapes.IMAGE_SIZE // size
    frequency = 30 ** -torch.linspace(0, 1, width // 4)
    angle = torch.arange(side)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=-1)
    visual.positional_embedding[1:] = grid.flatten(0, 1)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def train(
    model: torch.nn.Module, images: np.ndarray, captions: list[str], settings: Settings, work_dir: Path, compiled: bool
) -> None:
    """Pre-train ``model`` in place, with open_clip's loss in bf16.

    Raises:
        ConfigError: The checkpoint in the work dir is of a run with other settings.
    """
    tokens = open_clip.get_tokenizer(SHAPES_MODEL)(captions)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=settings.weight_decay), dict(params=others, weight_decay=0.0)],
        lr=settings.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    criterion = open_clip.ClipLoss()
    steps_per_epoch = len(images) // settings.batch_size
    total = settings.epochs * steps_per_epoch

    checkpoint_file, step = work_dir / 'checkpoint.pth', 0
    if checkpoint_file.exists():
        checkpoint = torch.load(checkpoint_file, map_location='cpu', weights_only=True)
        if checkpoint['settings'] != asdict(settings):
            raise ConfigError(
                f'{checkpoint_file} is of a run with {checkpoint["settings"]}, not {asdict(settings)}: '
                'choose another --work-dir, or delete the file'
            )
        model.load_state_dict(checkpoint['model'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        step = checkpoint['step']
        print(f'resuming at step {step} of {total}')
    encode_image = torch.compile(model.encode_image) if compiled else model.encode_image

    saved = reported = time.time()
    order_epoch, order = -1, None
    model.train()
    with Progress(*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task('train', total=total, completed=step)
        while step < total:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, np.random.default_rng([settings.seed, epoch]).permutation(len(images))
            batch = np.sort(order[position * settings.batch_size : (position + 1) * settings.batch_size])
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(step, total, settings.warmup, settings.lr)
            # With so few tokens, plain attention in bf16 is 1.5 times as fast as the fused kernel of the CPU.
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
                    dict(
                        model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, settings=asdict(settings)
                    ),
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
