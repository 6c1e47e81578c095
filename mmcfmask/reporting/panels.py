"""Pictures of counterfactual images: image | relevance | mask | refilled image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.font_manager import FontProperties

from .stages import COLORMAP, show, show_mask, show_relevance
from .style import FONT_SIZE, STYLE, new_figure

STAGES = ('Image', 'Relevance', 'Mask', 'Counterfactual')
HIDDEN_GREY = 0.62

_GAP = 0.035  # inches between cells
_HEADING = 0.17  # inches for a line of headings


class Variant(NamedTuple):
    """One mask x fill pair of :func:`variants_panel`.

    Attributes:
        mask_kind: ``'object'``, ``'context'`` or ``'random'``; neighbouring variants of one kind share a heading.
        fill: ``'none'``, ``'single'`` or ``'multi'``.
        value: The threshold or probability of the mask.
        images: The counterfactual images, (B, 3, H, W) in 0..1.
    """

    mask_kind: str
    fill: str
    value: float
    images: torch.Tensor | np.ndarray


def grey_out_patches(images, mask, grey: float = HIDDEN_GREY) -> np.ndarray:
    """Show masked patches in grey, as for an image whose masked patches are hidden from the encoder.

    Args:
        images (Tensor | ndarray): (B, 3, H, W), float RGB in 0..1.
        mask (Tensor | ndarray): (B, h, w), bool. Pixel i of H belongs to patch ⌊i h / H⌋ of h.
        grey: The grey, in 0..1.

    Returns:
        ndarray: (B, 3, H, W), float.

    Raises:
        ValueError: If the shapes do not fit.
    """
    images, mask = _images(images), _grid(mask, 'mask', len(images)).astype(bool)
    row, column = (np.arange(size) * num // size for size, num in zip(images.shape[2:], mask.shape[1:]))
    pixels = mask[:, row[:, None], column]
    return np.where(pixels[:, None], grey, images)


def counterfactual_panel(
    images,
    relevance,
    mask,
    counterfactuals=None,
    labels: Sequence[str] | None = None,
    gt_masks=None,
    layout: str = 'rows',
    stages: Sequence[str] = STAGES,
    width: float | None = None,
    published=None,
) -> matplotlib.figure.Figure:
    """Draw how each counterfactual image is made: image, relevance map, patch mask, refilled image.

    The relevance map is divided by its maximum over the image, as for the threshold of the mask, and laid over the grey
    image.

    Args:
        images (Tensor | ndarray): (B, 3, H, W), float RGB in 0..1.
        relevance (Tensor | ndarray): (B, h, w), float, on the patch grid.
        mask (Tensor | ndarray): (B, h, w), bool, True where a patch is masked.
        counterfactuals (Tensor | ndarray, optional): (B, 3, H, W), float RGB in 0..1. Without it (no fill: masked
            patches are hidden from the encoder) the masked patches are shown grey.
        labels: One text per image, such as ``'star\\npredicted: disc'``; line breaks are kept.
        gt_masks (Tensor | ndarray, optional): (B, H, W), bool; their outline is drawn on relevance and mask.
        layout: ``'rows'``, one image per row, reads well at the width of a paper's column; ``'columns'``, one image per
            column, is the compact form for a README.
        stages: The four headings.
        width: Width of the figure in inches. Defaults to 3.4 for ``'rows'`` (4.2 with ``published``) and to 0.8 per
            image for ``'columns'``, or more for long labels.
        published (Tensor | ndarray, optional): (B, h, w), float: another relevance map, shown before ``relevance``.

    Returns:
        matplotlib.figure.Figure: It has 4 B axes (5 B with ``published``) and one of the colour bar, independent of
            the pyplot state.

    Raises:
        ValueError: If shapes do not fit, or the layout is unknown.
    """
    images = _images(images)
    num = len(images)
    relevance = _normalised(_grid(relevance, 'relevance', num))
    mask = _grid(mask, 'mask', num).astype(bool)
    if mask.shape != relevance.shape:
        raise ValueError(f'mask has the shape {mask.shape} and relevance {relevance.shape}; they must be the same')
    counterfactuals = (
        grey_out_patches(images, mask)
        if counterfactuals is None
        else _images(counterfactuals, 'counterfactuals', images.shape)
    )
    labels = _labels(labels, num)
    if gt_masks is not None:
        gt_masks = _numpy(gt_masks).astype(bool)
        if gt_masks.shape != (num, *images.shape[2:]):
            raise ValueError(f'gt_masks has the shape {gt_masks.shape}, expected {(num, *images.shape[2:])}')
    if len(stages) != 4:
        raise ValueError(f'stages needs four headings, got {list(stages)}')
    maps, headings = [relevance], list(stages)
    if published is not None:
        maps.insert(0, _normalised(_grid(published, 'published', num)))
        headings[1:2] = ['Published', stages[1]]
    columns = len(headings)
    if layout not in ('rows', 'columns'):
        raise ValueError(f"layout is 'rows' or 'columns', not {layout!r}")
    by_row = layout == 'rows'

    with matplotlib.rc_context(STYLE):
        margin = _text_width(labels if by_row else headings)
        if by_row:
            width = width or (3.4 if published is None else 4.2)
            # The last heading may be wider than its column.
            right = max(0.02, (_text_width(headings[-1:]) - (width - margin) / columns) / 1.75)
            sheet = _Sheet(num, columns, images.shape, width, left=margin, top=_HEADING, bottom=0.28, right=right)
        else:
            lines = max(label.count('\n') + bool(label) for label in labels)
            width = width or margin + 0.3 + max(0.8, _text_width(labels)) * num
            sheet = _Sheet(
                columns, num, images.shape, width, left=margin, top=0.05 + 0.12 * lines, bottom=0.02, right=0.3
            )
        for i in range(num):
            axes = [sheet.cell(i, j) if by_row else sheet.cell(j, i) for j in range(columns)]
            outline = None if gt_masks is None else gt_masks[i]
            show(axes[0], images[i])
            for axis, shown in zip(axes[1:], maps):
                show_relevance(axis, images[i], shown[i], outline)
            show_mask(axes[-2], images[i], mask[i], outline)
            show(axes[-1], counterfactuals[i])
            sheet.left_label(i, labels[i]) if by_row else sheet.top_label(i, labels[i])
        for j, stage in enumerate(headings):
            sheet.top_label(j, stage) if by_row else sheet.left_label(j, stage)
        sheet.colorbar(num - 1 if by_row else 1, 1 if by_row else num - 1, vertical=not by_row)
        return sheet.figure


def variants_panel(
    images, relevance, variants: Sequence[Variant], labels: Sequence[str] | None = None, width: float | None = None
) -> matplotlib.figure.Figure:
    """Draw the counterfactual images of several mask x fill pairs side by side, one image per row.

    Args:
        images (Tensor | ndarray): (B, 3, H, W), float RGB in 0..1.
        relevance (Tensor | ndarray): (B, h, w), float, on the patch grid.
        variants: One column each, see :class:`Variant`; variants of one mask kind next to each other.
        labels: One text per image.
        width: Width of the figure in inches. Defaults to 0.66 per column.

    Returns:
        matplotlib.figure.Figure: It has B (2 + len(variants)) axes and one of the colour bar.

    Raises:
        ValueError: If shapes do not fit or there is no variant.
    """
    images = _images(images)
    num = len(images)
    relevance = _normalised(_grid(relevance, 'relevance', num))
    if not variants:
        raise ValueError('variants is empty: nothing to show')
    pictures = [_images(v.images, f'variant {v.mask_kind}/{v.fill}', images.shape) for v in variants]
    labels = _labels(labels, num)
    # Column index of each variant; a wider gap parts the kinds of mask from each other and from the image.
    breaks = [i for i, v in enumerate(variants) if i == 0 or v.mask_kind != variants[i - 1].mask_kind]

    with matplotlib.rc_context(STYLE):
        columns = 2 + len(variants)
        sheet = _Sheet(
            num,
            columns,
            images.shape,
            width or _text_width(labels) + 0.66 * columns,
            left=_text_width(labels),
            top=_HEADING * 2,
            bottom=0.28,
            right=0.02,
            wide_gaps=[2 + i for i in breaks],
        )
        for i in range(num):
            show(sheet.cell(i, 0), images[i])
            show_relevance(sheet.cell(i, 1), images[i], relevance[i])
            for j, picture in enumerate(pictures):
                show(sheet.cell(i, 2 + j), picture[i])
            sheet.left_label(i, labels[i])
        sheet.top_label(0, 'Image')
        sheet.top_label(1, 'Relevance')
        for j, variant in enumerate(variants):
            sheet.top_label(2 + j, f'{variant.fill} ({variant.value:g})')
        for start, end in zip(breaks, [*breaks[1:], len(variants)]):
            sheet.group_label(2 + start, 1 + end, f'{variants[start].mask_kind.capitalize()} mask')
        sheet.colorbar(num - 1, 1)
        return sheet.figure


class _Sheet:
    """A grid of image cells placed in inches, with room for labels on the left and top, and for a colour bar."""

    def __init__(self, rows, columns, image_shape, width, left, top, bottom, right, wide_gaps=()):
        self.wide_gaps = [sum(3 * _GAP for g in wide_gaps if g <= c) for c in range(columns)]
        room = width - left - right - _GAP * (columns - 1) - (self.wide_gaps[-1] if columns else 0)
        self.cell_width = room / columns
        if self.cell_width < 0.15:
            raise ValueError(f'a width of {width:.1f} inches is too little for {columns} columns')
        self.cell_height = self.cell_width * image_shape[2] / image_shape[3]
        height = top + rows * self.cell_height + (rows - 1) * _GAP + bottom
        self.width, self.height, self.left, self.top = width, height, left, top
        self.figure = new_figure((width, height))

    def _box(self, row, column):
        """Left, bottom, width, height of a cell in inches."""
        x = self.left + column * (self.cell_width + _GAP) + self.wide_gaps[column]
        y = self.height - self.top - (row + 1) * self.cell_height - row * _GAP
        return x, y, self.cell_width, self.cell_height

    def _axes(self, x, y, w, h):
        return self.figure.add_axes((x / self.width, y / self.height, w / self.width, h / self.height))

    def _text(self, x, y, text, **kwargs):
        self.figure.text(x / self.width, y / self.height, text, parse_math=False, **kwargs)

    def cell(self, row, column):
        axes = self._axes(*self._box(row, column))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(linewidth=0.3, color='0.6')
        return axes

    def left_label(self, row, text):
        _, y, _, h = self._box(row, 0)
        self._text(self.left - 0.05, y + h / 2, text, ha='right', va='center', linespacing=1.25)

    def top_label(self, column, text):
        x, y, w, h = self._box(0, column)
        self._text(x + w / 2, y + h + 0.055, text, ha='center', va='baseline', linespacing=1.1)

    def group_label(self, first, last, text):
        """A heading over several columns, with a line under it."""
        x0, y, _, h = self._box(0, first)
        x1 = self._box(0, last)[0] + self.cell_width
        y = y + h + _HEADING + 0.01
        self._text((x0 + x1) / 2, y + 0.045, text, ha='center', va='baseline', weight='bold')
        self.figure.add_artist(
            matplotlib.lines.Line2D([x0 / self.width, x1 / self.width], [y / self.height] * 2, color='0.3', lw=0.6)
        )

    def colorbar(self, row, column, vertical=False):
        x, y, w, h = self._box(row, column)
        axes = self._axes(x + w + 0.05, y, 0.06, h) if vertical else self._axes(x, y - 0.1, w, 0.06)
        bar = self.figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLORMAP),
            cax=axes,
            orientation='vertical' if vertical else 'horizontal',
            ticks=[0, 0.5, 1],
        )
        bar.ax.set_yticklabels(['0', '.5', '1']) if vertical else bar.ax.set_xticklabels(['0', '.5', '1'])
        bar.ax.tick_params(length=1.5, pad=1.5, labelsize=FONT_SIZE - 1, width=0.5)
        bar.outline.set_linewidth(0.4)


def _text_width(texts):
    """The width of labels in inches: the longest line and a margin."""
    renderer = new_figure((1, 1)).canvas.get_renderer()
    font = FontProperties(size=FONT_SIZE)
    lines = [line for text in texts for line in text.split('\n') if line]
    widths = [renderer.get_text_width_height_descent(line, font, ismath=False)[0] / renderer.dpi for line in lines]
    return max(widths) + 0.09 if widths else 0.02


def _numpy(x):
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    return np.asarray(x)


def _images(images, name='images', shape=None):
    images = _numpy(images)
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f'{name} has the shape {images.shape}, expected (B, 3, H, W)')
    if shape is not None and images.shape != shape:
        raise ValueError(f'{name} has the shape {images.shape}, the images {shape}; they must be the same')
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f'{name} is {images.dtype}, expected float RGB in 0..1 (divide by 255)')
    return images


def _grid(grid, name, num):
    grid = _numpy(grid)
    if grid.ndim != 3 or len(grid) != num:
        raise ValueError(f'{name} has the shape {grid.shape}, expected ({num}, h, w), one grid per image')
    return grid


def _normalised(relevance):
    return relevance / (relevance.max(axis=(1, 2), keepdims=True) + 1e-8)


def _labels(labels, num):
    if labels is None:
        return [''] * num
    if len(labels) != num:
        raise ValueError(f'{len(labels)} labels for {num} images')
    return [str(label) for label in labels]
