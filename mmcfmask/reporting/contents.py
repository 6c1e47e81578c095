"""The numbers of a report: runs, their tables, effective robustness, comparisons. Markdown and the page show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from .choices import add_choices
from .class_change import ClassChange, compare_classes
from .comparison import Comparison, compare_methods
from .examples import find_panels
from .groups import add_group_columns, read_metrics, sets_with_groups, sets_without_top1
from .order import keep_methods, read_order, sort_methods
from .predictions import BySet, gather_predictions
from .robustness import Lines, add_effective_robustness, fit_lines
from .runs import (
    Run,
    collect_metric,
    find_differences,
    find_problems,
    find_runs,
    group_runs,
    keep_shifts,
    list_sets,
    split_source,
)
from .style import Look, assign_looks
from .summary import METRICS, OOD_AVERAGE, Summary, summarize
from .wise_ft_curves import CurvePoint, find_curves


class Contents(NamedTuple):
    """The numbers of a report.

    Attributes:
        methods: ``{method: runs}``.
        accuracy: Top-1 accuracies, and the effective robustness if it is known.
        others: Tables of the other metrics.
        robustness: Effective robustness on every shift; None without reference models.
        lines: Lines of the reference models; None without them.
        changes: ``{set: changes of its classes}`` between the two methods ``compare``.
        compare: Names of two methods; None for no comparison.
        comparison: Paired comparison of these two, a set per entry.
        predictions: Predictions for single images, by set and method.
        curves: WiSE-FT curves by method.
        panels: Pictures of counterfactual images.
        notes: What makes the numbers of one column not comparable, and what was left out.
    """

    methods: Mapping[str, list[Run]]
    accuracy: Summary
    others: list[Summary]
    robustness: Summary | None
    lines: Lines | None
    changes: Mapping[str, list[ClassChange]]
    compare: Sequence[str] | None
    comparison: list[Comparison]
    predictions: BySet
    curves: Mapping[str, list[CurvePoint]]
    panels: Sequence[Path]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for seeds in self.methods.values() for run in seeds]

    @property
    def looks(self) -> dict[str, Look]:
        """Colour and marker of every method."""
        return assign_looks(self.methods)

    @property
    def sets(self) -> list[str]:
        """Names of the sets with a top-1 accuracy, in the order of the tables."""
        measured = collect_metric(self.methods, 'top1').values()
        have = {name for seeds in measured for name in seeds[0]}
        return [name for name in self.accuracy.columns if name in have]

    def compare_pair(self, before: str, after: str) -> list[Comparison]:
        """Paired comparison of any two methods."""
        return compare_methods(self.methods, self.predictions, before, after, self.sets, self.accuracy.shifts)

    def scatter_points(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """``{shift or OOD average: {method: (ID accuracy, its accuracy) of each run}}``."""
        id_set, shifts = self.accuracy.id_set, self.accuracy.shifts
        if not id_set:
            return {}
        average = {OOD_AVERAGE: shifts} if len(shifts) > 1 else {}
        points = {}
        for column, over in {**average, **{shift: (shift,) for shift in shifts}}.items():
            points[column] = {
                method: [(run[id_set], mean(run[shift] for shift in over)) for run in runs]
                for method, runs in collect_metric(self.methods, 'top1').items()
                if {id_set, *over} <= runs[0].keys()
            }
        return {column: methods for column, methods in points.items() if methods}

    def curve_points(self, column: str) -> dict[str, list[tuple[float, float, float]]]:
        """``{method: (α, ID accuracy, accuracy on a shift or their average)}`` of the WiSE-FT curves that have both."""
        id_set, over = self.accuracy.id_set, self.accuracy.shifts if column == OOD_AVERAGE else (column,)
        return {
            method: [(p.alpha, p.accuracies[id_set], mean(p.accuracies[name] for name in over)) for p in points]
            for method, points in self.curves.items()
            if {id_set, *over} <= points[0].accuracies.keys()
        }


def gather_contents(
    sources: Sequence[str],
    shifts: Sequence[str] | None = None,
    line_file: str | None = None,
    compare: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> Contents:
    """Read runs and compute everything that the report shows.

    Args:
        sources: Folders and files with runs, see :func:`find_runs`.
        shifts: Names of shifts, in order; None for all.
        line_file: CSV file of reference models; None for the one in the package.
        compare: Names of two methods to compare class by class.
        methods: Names of methods to show, in order; None for all, in the order of a study if one is among the sources.

    Raises:
        MissingFileError: A file or folder does not exist.
        ConfigError: A file is not valid, the runs are not comparable, or a name is unknown.
    """
    folders = [path for _, path in map(split_source, sources) if path.is_dir()]
    found = sort_methods(group_runs(find_runs(sources)), read_order(folders))
    if methods:
        found = keep_methods(found, methods)
    if shifts:
        found = group_runs(keep_shifts([run for seeds in found.values() for run in seeds], shifts))
    return describe_methods(found, line_file, compare, find_panels(folders))


def describe_methods(
    methods: Mapping[str, list[Run]],
    line_file: str | None = None,
    compare: Sequence[str] | None = None,
    panels: Sequence[Path] = (),
) -> Contents:
    """What a report shows of these runs, methods and sets in the order given; see :func:`gather_contents`."""
    accuracy = add_choices(add_group_columns(summarize_metric(methods, 'top1'), read_metrics(methods)), methods)
    others = [summary for key in METRICS if key != 'top1' and (summary := summarize_metric(methods, key))]
    lines = robustness = None
    if accuracy.id_set and accuracy.shifts:
        lines = fit_lines(line_file, accuracy.id_set, accuracy.shifts)
        if lines.lines:
            accuracy, robustness = add_effective_robustness(accuracy, methods, lines)
    changes = compare_classes(methods, *compare) if compare else {}
    notes = find_differences(run for seeds in methods.values() for run in seeds)
    predictions, left_out = gather_predictions(methods)
    contents = Contents(
        methods,
        accuracy,
        others,
        robustness,
        lines if robustness else None,
        changes,
        compare,
        [],
        predictions,
        find_curves(methods),
        panels,
        notes + left_out,
    )
    return contents._replace(comparison=contents.compare_pair(*compare)) if compare else contents


def summarize_metric(methods: Mapping[str, list[Run]], key: str) -> Summary | None:
    """The table of one metric; None if no run has it."""
    values = collect_metric(methods, key)
    runs = [run for seeds in methods.values() for run in seeds]
    id_set, have = runs[0].id_set, {name for seeds in values.values() for name in seeds[0]}
    if not have:
        return None
    metrics = [part for seeds in read_metrics(methods).values() for part in seeds]
    grouped = sets_with_groups(metrics, id_set)
    measured = [name for name in list_sets(runs) if name in have and name not in (id_set, *grouped)]
    apart = [name for name in grouped if name in have]
    with_accuracy = {name for seeds in collect_metric(methods, 'top1').values() for name in seeds[0] if name != id_set}
    average = with_accuracy <= have  # there is none of a metric that only some sets have, such as mCE
    marks = {
        method: {name: why for name, why in find_problems(seeds).items() if average or name in have}
        for method, seeds in methods.items()
    }
    uncounted = sets_without_top1(metrics)
    id_set = id_set if id_set in have else None
    return summarize(values, id_set, measured, METRICS[key], marks, average, apart, uncounted)
