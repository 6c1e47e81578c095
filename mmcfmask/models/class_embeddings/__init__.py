"""What a head is initialised with: class embeddings from prompts, image features, a linear probe or a file."""

from .build import CLASS_WEIGHTS, build_class_weights, load_class_weights
from .features import prototype_class_weights
from .linear_probe import fit_linear_probe
from .text import text_class_weights, text_context_weights, text_embeddings

__all__ = [
    'CLASS_WEIGHTS',
    'build_class_weights',
    'fit_linear_probe',
    'load_class_weights',
    'prototype_class_weights',
    'text_class_weights',
    'text_context_weights',
    'text_embeddings',
]
