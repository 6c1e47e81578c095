"""Accuracy against the number of training images per class."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.ticker import FixedLocator, NullLocator

from .style import STYLE, Look, assign_looks, new_figure
from .summary import OOD_AVERAGE, Summary
from .tables import markdown_table

WIDTH = 3  # panels side by side


def curve_columns(summaries: Mapping[int, Summary]) -> list[str]:
    """What is shown against the number of images: the ID accuracy, the OOD average, and the measures of groups."""
    found = {column: None for summary in summaries.values() for column in summary.columns}
    shifts = {name for summary in summaries.values() for name in summary.shifts}
    extra = {name for summary in summaries.values() for name in summary.extra}
    return [column for column in found if column == OOD_AVERAGE or column not in shifts | extra]


def few_shot_markdown(summaries: Mapping[int, Summary]) -> str:
    """A table for each column, with a method per row.

    Args:
        summaries: ``{images per class: results}``.
    """
    numbers = sorted(summaries)
    methods = dict.fromkeys(method for summary in summaries.values() for method in summary.rows)
    parts = ['# Training images per class\n']
    for column in curve_columns(summaries):
        cells = [
            [method, *('–' if method not in summaries[n].rows else summaries[n].text(method, column) for n in numbers)]
            for method in methods
        ]
        parts += [f'## {column}\n', markdown_table(('Method', *map(str, numbers)), cells)]
    notes = dict.fromkeys(note for number in numbers for note in summaries[number].notes)
    return '\n'.join([*parts, *(f'- {note}' for note in notes)]) + '\n'


def few_shot_figure(
    summaries: Mapping[int, Summary], looks: Mapping[str, Look] | None = None
) -> matplotlib.figure.Figure:
    """Draw a panel for each column: means over seeds with the standard deviation as error bars, a line per method.

    Args:
        summaries: ``{images per class: results}``.
        looks: ``{method: colour and marker}``; None for those by place.

    Returns:
        matplotlib.figure.Figure: Independent of the pyplot state.
    """
    numbers, columns = sorted(summaries), curve_columns(summaries)
    methods = dict.fromkeys(method for summary in summaries.values() for method in summary.rows)
    looks = looks or assign_looks(methods)
    across = min(WIDTH, len(columns))
    down = -(-len(columns) // across)
    with matplotlib.rc_context(STYLE):
        figure = new_figure((0.4 + 2.2 * across, 0.4 + 1.9 * down + 0.13 * -(-len(methods) // across)))
        figure.set_layout_engine('constrained')
        panels = figure.subplots(down, across, squeeze=False, sharex=True).flatten()
        for axes, column in zip(panels, columns):
            for method in methods:
                stats = {
                    n: summaries[n].rows[method][column] for n in numbers if column in summaries[n].rows.get(method, ())
                }
                axes.errorbar(
                    list(stats),
                    [stat.mean for stat in stats.values()],
                    [stat.std or 0 for stat in stats.values()],
                    fmt=f'-{looks[method].marker}',
                    color=looks[method].color,
                    ms=3.5,
                    lw=1,
                    elinewidth=0.7,
                    capsize=1.5,
                    label=method,
                )
            axes.set(title=column, xscale='log', xlabel='images per class')
            axes.xaxis.set_major_locator(FixedLocator(numbers))
            axes.xaxis.set_major_formatter(lambda number, _: f'{number:g}')
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(labelbottom=True)
            axes.grid(color='0.92', lw=0.5)
            axes.spines[['top', 'right']].set_visible(False)
        for axes in panels[len(columns) :]:
            axes.remove()
        for axes in panels[::across]:
            axes.set_ylabel('accuracy (%)')
        legend = figure.legend(
            *panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=across, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return figure
