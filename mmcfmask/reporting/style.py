"""Style and output of all figures, without pyplot, so the user's backend and open figures stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import atomic_write

FONT_SIZE = 7  # points
STYLE = {
    **matplotlib.rcParamsDefault,
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],
    'font.size': FONT_SIZE,
    'axes.labelsize': FONT_SIZE + 1,
    'xtick.labelsize': FONT_SIZE,
    'ytick.labelsize': FONT_SIZE,
    'axes.linewidth': 0.6,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'pdf.fonttype': 42,  # TrueType, which publishers ask for
}
STYLE = {key: value for key, value in STYLE.items() if key not in ('backend', 'backend_fallback', 'interactive')}

# Okabe & Ito, "Color Universal Design" (2008), without the yellow that is lost on white.
OKABE_ITO = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')

MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')

BACKING = dict(boxstyle='square,pad=0.1', fc='white', ec='none', alpha=0.75)  # keeps words readable on lines
# Names of the sets in publications.
SET_NAMES = {
    'imagenet': 'ImageNet',
    'imagenet-v2': 'ImageNet-V2',
    'imagenet-r': 'ImageNet-R',
    'imagenet-a': 'ImageNet-A',
    'imagenet-sketch': 'ImageNet-Sketch',
    'objectnet': 'ObjectNet',
    'imagenet-c': 'ImageNet-C',
}


class Look(NamedTuple):
    """Colour and marker of a method, the same in every figure."""

    color: str
    marker: str


def assign_looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for every method, by its place in the order; colours that are used again get other markers."""
    return {
        method: Look(OKABE_ITO[i % len(OKABE_ITO)], MARKERS[(i + i // len(OKABE_ITO)) % len(MARKERS)])
        for i, method in enumerate(methods)
    }


def new_figure(size: tuple) -> Figure:
    """A figure of ``size`` inches, unknown to pyplot."""
    figure = Figure(figsize=size, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def save_figure(fig: Figure, path, pdf: bool = False, dpi: int = 300) -> list[Path]:
    """Write a figure as PNG, and optionally as PDF.

    Args:
        fig: The figure.
        path (str | Path): The file; its name ends in ``.png``. Missing folders are created.
        pdf: Whether to also write ``<path without .png>.pdf``.
        dpi: Resolution of the PNG.

    Returns:
        list[Path]: The files written.

    Raises:
        ValueError: If the name does not end in ``.png``.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise ValueError(f"{path}: the name of a picture must end in '.png'")
    with matplotlib.rc_context(STYLE):
        with atomic_write(path) as file:
            fig.savefig(file, dpi=dpi, format='png', facecolor='white')
        if not pdf:
            return [path]
        # Without a date, equal figures give equal files.
        with atomic_write(path.with_suffix('.pdf')) as file:
            fig.savefig(file, dpi=dpi, format='pdf', metadata={'CreationDate': None})
        return [path, path.with_suffix('.pdf')]
