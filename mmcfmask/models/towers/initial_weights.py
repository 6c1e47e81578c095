"""What a backbone or a neck of mmpretrain starts from: its ``init_cfg``, applied when the model is built."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmpretrain.models.backbones import BEiTViT, VisionTransformer
from torch import Tensor, nn

from ...errors import ConfigError, MissingFileError
from ...messages import short_list
from .weight_files import check_tensors, find_tensors, read_tensors

# Names of DINO, DINOv2, MAE, DeiT, BEiT and timm, and those of mmpretrain's ViTs.
_TO_MMPRETRAIN = (
    (r'patch_embed\.proj\.(.*)', r'patch_embed.projection.\1'),
    (r'blocks\.(\d+)\.norm([12])\.(.*)', r'layers.\1.ln\2.\3'),
    (r'blocks\.(\d+)\.mlp\.fc1\.(.*)', r'layers.\1.ffn.layers.0.0.\2'),
    (r'blocks\.(\d+)\.mlp\.fc2\.(.*)', r'layers.\1.ffn.layers.1.\2'),
    (r'blocks\.(\d+)\.ls1\.gamma', r'layers.\1.attn.gamma1.weight'),
    (r'blocks\.(\d+)\.ls2\.gamma', r'layers.\1.ffn.gamma2.weight'),
    (r'blocks\.(\d+)\.(.*)', r'layers.\1.\2'),
    (r'norm\.(.*)', r'ln1.\1'),
    (r'fc_norm\.(.*)', r'ln2.\1'),
)


def initialise(part: nn.Module, where: str) -> None:
    """Apply the ``init_cfg`` of a backbone or a neck now, once, so that a copy of it has the same weights. mmengine
    would do it when the training starts.

    Args:
        part (nn.Module): Its weights change in place. What is no module of mmengine is left alone.
        where (str): Its dotted key, for errors.

    Raises:
        ConfigError: Weights of ``dict(type='Pretrained', checkpoint=…)`` that do not fit.
        MissingFileError: There is no such file.
    """
    if not isinstance(part, BaseModule):
        return
    files = pretrained_cfgs(part.init_cfg)
    if not files and not part.is_init:
        with _quiet():
            part.init_weights()
    for cfg in files:  # they replace all other weights
        module = getattr(part, 'timm_model', part)  # published weights of timm know nothing of its wrapper
        load_weights(module, cfg['checkpoint'], f'{where}.init_cfg.checkpoint', cfg.get('prefix') or '')
        part.is_init = True


def pretrained_cfgs(init_cfg: dict | list[dict] | None) -> list[dict]:
    """Those of an ``init_cfg`` that load weights. Raises a ConfigError for one that names no file."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    files = [cfg for cfg in cfgs if cfg and cfg.get('type') in ('Pretrained', PretrainedInit)]
    for cfg in files:
        if not isinstance(cfg.get('checkpoint'), str):
            raise ConfigError(f"init_cfg={dict(cfg)} names no file: write dict(type='Pretrained', checkpoint=…)")
    return files


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the context, mmengine does not print a line per parameter."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def load_weights(module: nn.Module, path: str, where: str, prefix: str = '') -> None:
    """Load weights into a module, in place.

    The names in the file may have a prefix, such as ``backbone.``, and may be those that DINO, MAE, DeiT, BEiT or timm
    publish. A position embedding of another image size is resized where mmpretrain does it. What only the file has (a
    classifier, a decoder) is left out. A layer norm that only the module has (such as the one behind a mean of tokens)
    keeps its weights, with a warning.

    Args:
        module (nn.Module): A backbone or a neck.
        path (str): A file, or what mmengine loads (``https://…``, ``torchvision://resnet50``, …).
        where (str): The key that names the file, for errors.
        prefix (str): Only names in the file that begin with it count.

    Raises:
        ConfigError: The file has not all weights of the module, or others; the message names them.
        MissingFileError: There is no such file, or it cannot be downloaded.
    """
    state, named = _read(path, where), f'{where}={path!r}'
    check_tensors(state, path)
    state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    try:
        # mmpretrain's towers resize their position embeddings here.
        missing, left = module.load_state_dict(_matching(module, state), strict=False)
    except RuntimeError as error:
        wrong = '; '.join(line.strip() for line in str(error).splitlines()[1:]) or str(error)
        raise ConfigError(f'{named} does not fit {type(module).__name__}: {wrong}') from None
    parameters = dict(module.named_parameters())
    missing = [name for name in missing if name in parameters or name.endswith(('running_mean', 'running_var'))]
    norms = [name for name in missing if isinstance(module.get_submodule(name.rpartition('.')[0]), nn.LayerNorm)]
    if len(norms) < len(missing):
        raise ConfigError(
            f'{named} lacks {len(missing)} weights of {type(module).__name__}: {short_list(missing, 4)}. It holds '
            f'{short_list(state, 4) or f"nothing below {prefix!r}"}. Give weights of this backbone, under the names of '
            'mmpretrain, DINO, MAE or timm'
        )
    for names, what, level in (
        (norms, 'are not in the file and start as they are', logging.WARNING),
        (left, 'of the file are left out', logging.INFO),
    ):
        if names:
            print_log(f'{named}: {short_list(names, 4)} {what}', 'current', level=level)


def check_file(path: str, where: str) -> None:
    """Raise a MissingFileError unless ``path`` is a file, or what mmengine downloads."""
    if '://' not in path and not Path(path).expanduser().is_file():
        raise MissingFileError(f'{where}={path!r}: the file does not exist (looked for {Path(path).absolute()})')


def _read(path: str, where: str) -> Mapping[str, Tensor]:
    check_file(path, where)
    if '://' not in path:
        return read_tensors(Path(path).expanduser())
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f'{where}={path!r} cannot be loaded ({error}): download the file and give its path'
        ) from error
    return find_tensors(checkpoint, path)


def _matching(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of ``module``, as far as it has them: without a prefix, and renamed."""
    wanted, readings = module.state_dict().keys(), []
    for renames in ((), _TO_MMPRETRAIN) if isinstance(module, (VisionTransformer, BEiTViT)) else ((),):
        for prefix in _prefixes(wanted, state, renames):
            below = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            readings.append({_rename(key, renames): value for key, value in below.items()})
    return max(readings, key=lambda reading: len(wanted & reading.keys()))


def _prefixes(wanted: Iterable[str], names: Iterable[str], renames: Iterable[tuple[str, str]]) -> list[str]:
    """What may stand before the names that are wanted: nothing, or what stands before one of them."""
    first = next(iter(wanted), '')
    found = {
        name[: -len(tail)]
        for name in names
        for tail in _tails(name)
        if _rename(tail, renames) == first and len(tail) < len(name)
    }
    return ['', *sorted(found)]


def _tails(name: str) -> Iterator[str]:
    parts = name.split('.')
    return ('.'.join(parts[start:]) for start in range(len(parts)))


def _rename(name: str, renames: Iterable[tuple[str, str]]) -> str:
    return next((re.sub(old, new, name) for old, new in renames if re.fullmatch(old, name)), name)
