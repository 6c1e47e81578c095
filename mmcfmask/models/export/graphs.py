"""The image tower or the classifier as a graph: of ``torch.export``, and of ONNX."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn

from ...compat import no_fused_transformer_layers
from ...errors import ConfigError, MissingPackageError, first_line
from ...files import atomic_write

# A file of ONNX cannot hold more; weights of larger models lie beside it.
LARGEST_FILE = 1_900_000_000
# The axis of any length, and its name in a graph.
BATCH = dict(images={0: torch.export.Dim('batch')})

TORCH = """
import torch

model = torch.export.load('FOLDER/model.pt2').module()
{output} = model(images)  # images: (B, 3, H, W), normalised
"""
ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession('FOLDER/model.onnx')
({output},) = session.run(['{output}'], dict(images=images))  # images: (B, 3, H, W) float32, normalised
"""


class ImageFeatures(nn.Module):
    """Normalised images (B, 3, H, W) to image embeddings (B, D), before L2 normalisation."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.extract_feat(images)[-1]


class Logits(nn.Module):
    """Normalised images (B, 3, H, W) to logits (B, C)."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.head(self.model.extract_feat(images))


def export_graph(model: ImageClassifier, image_size: tuple[int, int], classifier: bool) -> torch.export.ExportedProgram:
    """Trace a classifier in eval mode with ``torch.export``, for any number of images.

    Args:
        model: The classifier, on the CPU.
        image_size: Height and width of its images.
        classifier: Logits, or else image embeddings.

    Returns:
        A graph with one input ``images`` (B, 3, H, W), normalised, and one output.

    Raises:
        ConfigError: ``torch.export`` cannot trace the tower.
    """
    module = (Logits if classifier else ImageFeatures)(model.eval())
    images = torch.zeros(2, 3, *image_size)
    try:
        with torch.no_grad(), no_fused_transformer_layers():
            return torch.export.export(module, (images,), dynamic_shapes=BATCH)
    except Exception as error:  # torch raises errors of many types
        raise ConfigError(
            f'torch.export cannot trace this {type(model.backbone).__name__}: {first_line(error)}'
        ) from error


def write_graph(folder: Path, graph: torch.export.ExportedProgram, output: str) -> str:
    """Write a graph as ``model.pt2``, for ``torch.export.load``.

    Args:
        folder: Where to write.
        graph: Of :func:`export_graph`.
        output: Name of the output.

    Returns:
        Python that loads it.

    Raises:
        StorageError: The file cannot be written.
    """
    for part in graph.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop('stack_trace', None)  # paths of this machine
    with atomic_write(folder / 'model.pt2') as file:
        torch.export.save(graph, file)
    return TORCH.format(output=output)


def write_onnx(folder: Path, graph: torch.export.ExportedProgram, output: str) -> str:
    """Write a graph as ``model.onnx``, with the input ``images``. Weights of more than 1.9 GB are in a file beside it.

    Args:
        folder: Where to write.
        graph: Of :func:`export_graph`.
        output: Name of the output.

    Returns:
        Python that loads it.

    Raises:
        MissingPackageError: The extra ``mmcfmask[export]`` is not installed.
        ConfigError: ONNX has no counterpart of an operation.
        StorageError: A file cannot be written.
    """
    check_onnx()
    logger = logging.getLogger('onnxscript')
    level = logger.level
    logger.setLevel(logging.ERROR)  # hides what it does not simplify
    try:
        program: Any = torch.onnx.export(
            graph, dynamo=True, input_names=['images'], output_names=[output], dynamic_shapes=BATCH, verbose=False
        )
    except Exception as error:  # torch raises errors of many types
        raise ConfigError(f'torch.onnx cannot export this model: {first_line(error)}') from error
    finally:
        logger.setLevel(level)
    path = folder / 'model.onnx'
    if sum(value.numel() * value.element_size() for value in graph.state_dict.values()) > LARGEST_FILE:
        program.save(str(path), external_data=True)
    else:
        with atomic_write(path) as file:
            file.write(program.model_proto.SerializeToString())
    return ONNX.format(output=output)


def check_onnx() -> None:
    """Raise a MissingPackageError unless what ``torch.onnx`` needs is installed."""
    missing = [name for name in ('onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"ONNX needs {' and '.join(missing)}: pip install 'mmcfmask[export]'")
