"""Accuracy in distribution against accuracy under distribution shift."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

import matplotlib
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .style import BACKING, FONT_SIZE, STYLE, Look, assign_looks, new_figure
from .summary import Results, check_results, summarize

_CLIP = 0.05  # percent; the logit of 0 and 100 is infinite


def id_ood_points(
    results: Results, id_set: str = 'test', shifts: Sequence[str] | None = None
) -> dict[str, list[tuple[float, float]]]:
    """(ID accuracy, OOD average) of every run of the methods that have both; see :func:`.summary.summarize`."""
    summary = summarize(results, id_set, shifts)
    return {
        method: [(run[id_set], mean(run[n] for n in summary.shifts)) for run in runs]
        for method, runs in check_results(results).items()
        if summary.shifts and {id_set, *summary.shifts} <= runs[0].keys()
    }


def id_ood_scatter(
    points: Mapping[str, Sequence],
    logit: bool = False,
    diagonal: bool = True,
    xlabel: str = 'ID accuracy (%)',
    ylabel: str = 'OOD average accuracy (%)',
    line: Callable | None = None,
    line_label: str = 'reference models',
    reference: Sequence | None = None,
    size: tuple[float, float] = (3.3, 2.8),
    looks: Mapping[str, Look] | None = None,
) -> matplotlib.figure.Figure:
    """Scatter of methods, ID accuracy on x and OOD average on y, each labelled with its name.

    Args:
        points: ``{method: (id, ood)}`` or ``{method: [(id, ood), ...]}``, one pair per seed, in percent: what
            :func:`id_ood_points` returns. Several seeds are drawn as their mean, with the standard deviation as error
            bars, and as faint single runs.
        logit: Scale both axes by the logit, on which models trained alike lie on a line (Taori et al., "Measuring
            Robustness to Natural Distribution Shifts in Image Classification", 2020).
        diagonal: Draw the part of y = x, where a shift costs nothing, that lies within the axes.
        xlabel, ylabel: Labels of the axes.
        line: Function from ID to OOD accuracies, both (N,) in percent, drawn as a line, such as
            :meth:`mmcfmask.evaluation.effective_robustness.Line.predict`. The axes are extended to show it.
        line_label: The label of the line.
        reference: Pairs of the models that the line was fitted on, drawn as small grey dots within the axes.
        size: Width and height in inches.
        looks: ``{method: colour and marker}``; None for those by place.

    If names do not fit beside their points, a legend below the axes has all names, and the figure is higher.

    Returns:
        matplotlib.figure.Figure: Independent of the pyplot state.

    Raises:
        ValueError: There are no points, or values are not in 0..100.
    """
    if not points:
        raise ValueError('points is empty: no method to show')
    runs = {method: np.atleast_2d(np.asarray(pairs, dtype=float)) for method, pairs in points.items()}
    for method, pairs in runs.items():
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs >= 0) & (pairs <= 100)).all():
            raise ValueError(
                f'{method!r}: expected pairs of ID accuracy and OOD average in 0..100, got {points[method]!r}'
            )

    with matplotlib.rc_context(STYLE):
        figure = new_figure(size)
        axes = figure.add_axes((0.5 / size[0], 0.42 / size[1], 1 - 0.58 / size[0], 1 - 0.48 / size[1]))
        if logit:
            for set_scale in (axes.set_xscale, axes.set_yscale):
                set_scale('function', functions=(_logit, _percent))
        xlim, ylim = _limits(list(runs.values()), logit, line)
        axes.set(xlim=xlim, ylim=ylim, xlabel=xlabel, ylabel=ylabel)
        for axis, limits in ((axes.xaxis, xlim), (axes.yaxis, ylim)):
            axis.set_major_locator(
                FixedLocator(_logit_ticks(*limits)) if logit else MaxNLocator(7, steps=[1, 2, 5, 10])
            )
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.grid(color='0.92', lw=0.5)
        axes.set_axisbelow(True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
        if diagonal:
            equal = np.linspace(max(xlim[0], ylim[0]), min(xlim[1], ylim[1]), 100)
            start, end = axes.transData.transform([(equal[0], equal[0]), (equal[-1], equal[-1])])
            if equal[0] < equal[-1] and np.hypot(*(end - start)) > 0.4 * figure.dpi:  # the label has room beside it
                axes.plot(equal, equal, ls=(0, (4, 3)), color='0.55', lw=0.8, zorder=1, label='y = x')
        if line is not None:
            x = np.linspace(*xlim, 400)
            y = np.asarray(line(x), dtype=float)
            shown = (y >= ylim[0]) & (y <= ylim[1])
            axes.plot(x[shown], y[shown], color='0.4', lw=0.9, zorder=1.2, label=line_label)
        if reference is not None:
            axes.scatter(*np.asarray(reference, dtype=float).T, s=4, color='0.72', lw=0, zorder=1.1)
        looks = looks or assign_looks(runs)
        colors, markers = zip(*(looks[method] for method in runs))
        for (method, pairs), color, marker in zip(runs.items(), colors, markers):
            x, y = pairs.mean(axis=0)
            error = {}
            if len(pairs) > 1:
                axes.scatter(*pairs.T, s=7, color=color, marker=marker, alpha=0.35, lw=0, zorder=2)
                error = dict(
                    xerr=stdev(pairs[:, 0]), yerr=stdev(pairs[:, 1]), elinewidth=0.9, capsize=1.8, capthick=0.9
                )
            axes.errorbar(
                x,
                y,
                **error,
                fmt=marker,
                ms=5,
                color=color,
                mec='white',
                mew=0.5,
                zorder=3,
                label=method,
                clip_on=False,
            )
        for drawn in axes.lines:
            if drawn.get_label() in ('y = x', line_label):
                _label_line(axes, drawn, runs, reference)
        if not _label_points(axes, runs, colors, reference):
            _legend_below(axes, runs)
        return figure


def _logit(percent):
    p = np.clip(np.asarray(percent, dtype=float), _CLIP, 100 - _CLIP) / 100
    return np.log(p / (1 - p))


def _percent(logit):
    return 100 / (1 + np.exp(-np.asarray(logit, dtype=float)))


def _logit_ticks(low, high):
    """Round percentages, the coarsest that give at least four ticks on the axis."""
    coarse = [0.1, 1, 5, *range(10, 100, 10), 95, 99, 99.9]
    fine = (np.round(np.arange(step, 100, step), 1) for step in (5, 2, 1, 0.5, 0.2, 0.1))
    for ticks in (coarse, *fine):
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= 4:
            break
    return shown


def _limits(runs, logit, line=None):
    """Limits of x and y with room around the points for their labels, and the line in view over all points."""
    forward, inverse = (_logit, _percent) if logit else (np.asarray, np.asarray)
    smallest = 0.5 if logit else 4.0
    limits = []
    for axis in (0, 1):
        spread = [(p[:, axis].mean(), p[:, axis].std(ddof=1) if len(p) > 1 else 0) for p in runs]
        low = forward(min(min(m - s for m, s in spread), min(p[:, axis].min() for p in runs)))
        high = forward(max(max(m + s for m, s in spread), max(p[:, axis].max() for p in runs)))
        if line is not None and axis == 1:
            seen = forward(line(np.array([p[:, 0].min() for p in runs] + [p[:, 0].max() for p in runs])))
            low, high = min(low, seen.min()), max(high, seen.max())
        pad = max(0.14 * (high - low), (smallest - (high - low)) / 2, smallest / 8)
        limits.append([low - pad, high + pad])
    return [tuple(float(np.clip(inverse(v), 0, 100)) for v in pair) for pair in limits]


def _label_line(axes, line, runs, reference=None):
    """Write a line's label along it, above or below, where it is farthest from points and other labels."""
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72  # pixels per point
    path = axes.transData.transform(line.get_xydata())
    if len(path) < 2:
        return
    points = axes.transData.transform(np.concatenate(list(runs.values())))
    dots = np.empty((0, 2)) if reference is None else axes.transData.transform(np.asarray(reference, dtype=float))
    frame = axes.get_window_extent(renderer).extents
    others = [text.get_window_extent(renderer).extents for text in axes.texts]
    text = axes.annotate(
        line.get_label(),
        line.get_xydata()[len(path) // 2],
        xytext=(0, 0),
        textcoords='offset points',
        ha='center',
        va='center',
        rotation_mode='anchor',
        color='0.35',
        fontsize=FONT_SIZE - 1,
        zorder=1.5,
        bbox=BACKING,
    )
    width, height = text.get_window_extent(renderer).size / 2 / scale
    places = []
    for i, away in itertools.product(np.linspace(0, len(path) - 1, 25).astype(int), (-1, 1, -2, 2, -3, 3)):
        along = path[min(i + 1, len(path) - 1)] - path[max(i - 1, 0)]
        if not along.any():  # beyond what a logit axis can tell apart
            continue
        along = along / np.hypot(*along)
        normal = np.array([-along[1], along[0]])
        offset = normal * np.sign(away) * (height + 1 + 5 * (abs(away) - 1))
        centre = path[i] + offset * scale
        half = np.abs(along) * width * scale + np.abs(normal) * height * scale
        box = (*(centre - half), *(centre + half))
        clear = np.abs(points - centre) - half
        clear = np.hypot(*np.maximum(clear, 0).T).min() / scale
        # In the frame of the text: how many dots it would cover.
        near = (np.abs((dots - centre) @ along) < (width + 2) * scale) & (
            np.abs((dots - centre) @ normal) < (height + 1) * scale
        )
        covered = sum(_overlap(box, other) for other in others) + 4 * (np.prod(2 * half) - _overlap(box, frame))
        cost = round(covered / scale**2 - 10 * min(clear, 30) + 60 * near.sum() + 40 * (abs(away) - 1) + 5 * (away > 0))
        places.append((cost, i, tuple(offset), np.degrees(np.arctan2(along[1], along[0]))))
    if not places:
        text.remove()
        return
    _, i, offset, angle = min(places)
    text.xy = line.get_xydata()[i]
    text.set_position(offset)
    text.set_rotation(angle)


def _legend_below(axes, runs):
    """Put the names into a legend below the axes. The axes keep their size, so the figure gets higher."""
    figure = axes.figure
    width, height = figure.get_size_inches()
    left, bottom, axes_width, axes_height = axes.get_position().bounds
    names = {container.get_label(): container for container in axes.containers if container.get_label() in runs}
    columns = 1 if max(map(len, runs)) > 24 else 2
    labels = ['\n'.join(textwrap.wrap(name, 52 // columns - 2)) or name for name in names]
    legend = figure.legend(
        [container.lines[0] for container in names.values()],
        labels,
        loc='lower center',
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    extra = legend.get_window_extent(figure.canvas.get_renderer()).height / figure.dpi + 0.04
    figure.set_size_inches(width, height + extra)
    axes.set_position(
        (left, (bottom * height + extra) / (height + extra), axes_width, axes_height * height / (height + extra))
    )


def _label_points(axes, runs, colors, reference=None) -> bool:
    """Write each method's name beside its point, where it covers the least of names, points, bars, lines and frame.

    No name is written if two names, or a name and a point, must touch, or if a name leaves the figure. A thin line
    connects a point with a name that is far away or nearer to another point.

    Returns:
        bool: Whether the names were written.
    """
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72  # pixels per point
    frame = axes.get_window_extent(renderer).extents
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    texts, centres, bars = [], [], [text.get_window_extent(renderer).extents for text in axes.texts]
    for (method, pairs), color in zip(runs.items(), colors):
        x, y = pairs.mean(axis=0)
        sx, sy = pairs.std(axis=0, ddof=1) if len(pairs) > 1 else (0, 0)
        (cx, cy), (x0, y0), (x1, y1) = to_pixels([(x, y), (x - sx, y - sy), (x + sx, y + sy)])
        centres.append((cx, cy))
        r = 2.8 * scale  # of a marker; error bars with their caps are as thick
        bars += [(x0 - r, cy - r, x1 + r, cy + r), (cx - r, y0 - r, cx + r, y1 + r)]
        if len(pairs) > 1:  # single runs are smaller; 0.7 points more for the white around a name
            bars += [(x - 2 * scale, y - 2 * scale, x + 2 * scale, y + 2 * scale) for x, y in to_pixels(pairs)]
        texts.append(
            axes.annotate(
                method,
                (x, y),
                xytext=(0, 0),
                textcoords='offset points',
                color=color,
                ha='left',
                va='bottom',
                parse_math=False,
                zorder=4,
                bbox=BACKING,
            )
        )
    lines = [to_pixels(line.get_xydata()) for line in axes.lines if len(line.get_xydata()) > 1]
    lines = np.concatenate([np.empty((0, 2)), *lines])
    dots = np.empty((0, 2)) if reference is None else to_pixels(np.asarray(reference, dtype=float))
    sizes = [text.get_window_extent(renderer).size for text in texts]

    def candidates(i):
        """(distance in points, box) all around a point; the box touches a circle around the point from outside."""
        for distance, angle in itertools.product((6, 8, 10, 13, 17, 22, 28, 36), np.radians(np.arange(0, 360, 10))):
            offset = distance * scale * np.array([np.cos(angle), np.sin(angle)])
            corner = centres[i] + offset - sizes[i] * (1 - np.array([np.cos(angle), np.sin(angle)])) / 2
            yield distance, (*corner, *(corner + sizes[i]))

    def astray(i, box):
        """Pixels by which the box is nearer to the marker of another method than to its own; negative if it is not."""
        away = np.hypot(*np.maximum(np.maximum(box[:2] - np.array(centres), np.array(centres) - box[2:]), 0).T)
        return away[i] - np.delete(away, i).min(initial=np.inf)

    def cost(i, distance, box, placed):
        covered = sum(_overlap(box, other) for other in [*bars, *placed])
        covered += 2.5 * scale * max(astray(i, box) + 3 * scale, 0)  # keeps it from looking like the name of another
        outside = sizes[i].prod() - _overlap(box, frame)
        crossing, dotted = (((xy > box[:2]) & (xy < box[2:])).all(axis=1).sum() for xy in (lines, dots))
        # Rounded, so the first of equal places wins, which is to the right.
        return round(8 * (covered + outside + scale * (crossing + dotted)) + scale**2 * (distance - 6) ** 2 / 2)

    boxes = {}
    for _ in range(3):  # then move each name again, now that all others have a place
        for i in range(len(texts)):
            placed = [(box[0] - scale, box[1], box[2] + scale, box[3]) for j, (_, box) in boxes.items() if j != i]
            boxes[i] = min(candidates(i), key=lambda candidate: cost(i, *candidate, placed))  # noqa: B023
    page = (*axes.figure.bbox.p0, *axes.figure.bbox.p1)
    clean = all(
        not any(_overlap(box, other) for j, (_, other) in boxes.items() if j != i)
        and max(_overlap(box, other) for other in bars)
        < 0.02 * sizes[i].prod()  # of the box, which is larger than its letters
        and _overlap(box, page) > 0.999 * sizes[i].prod()
        for i, (_, box) in boxes.items()
    )
    if not clean:
        for text in texts:
            text.remove()
        return False
    for i, (distance, box) in boxes.items():
        text, (cx, cy), (x0, y0, x1, y1) = texts[i], centres[i], box
        text.set_position(((x0 - cx) / scale, (y0 - cy) / scale))
        if distance > 10 or astray(i, box) > 0:
            end = to_data((min(max(cx, x0), x1), min(max(cy, y0), y1)))
            arrow = dict(arrowstyle='-', color=text.get_color(), lw=0.5, shrinkA=0, shrinkB=3)
            axes.annotate('', text.xy, xytext=end, arrowprops=arrow)
    return True


def _overlap(a, b):
    """Area that two boxes (x0, y0, x1, y1) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
