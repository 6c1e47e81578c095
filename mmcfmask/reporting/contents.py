"""The numbers of a report: runs, their tables, effective robustness and changes of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .choices import add_choices
from .class_change import ClassChange, compare_classes
from .groups import add_group_columns, read_metrics, sets_with_groups, sets_without_top1
from .robustness import Lines, add_effective_robustness, fit_lines
from .runs import Run, collect_metric, find_differences, find_problems, find_runs, group_runs, keep_shifts, list_sets
from .summary import METRICS, Summary, summarize


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
        notes: What makes the numbers of one column not comparable.
    """

    methods: Mapping[str, list[Run]]
    accuracy: Summary
    others: list[Summary]
    robustness: Summary | None
    lines: Lines | None
    changes: Mapping[str, list[ClassChange]]
    compare: Sequence[str] | None
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for seeds in self.methods.values() for run in seeds]


def gather_contents(
    sources: Sequence[str],
    shifts: Sequence[str] | None = None,
    line_file: str | None = None,
    compare: Sequence[str] | None = None,
) -> Contents:
    """Read runs and compute everything that the report shows.

    Args:
        sources: Folders and files with runs, see :func:`find_runs`.
        shifts: Names of shifts, in order; None for all.
        line_file: CSV file of reference models; None for the one in the package.
        compare: Names of two methods to compare class by class.

    Raises:
        MissingFileError: A file or folder does not exist.
        ConfigError: A file is not valid, the runs are not comparable, or a name is unknown.
    """
    runs = find_runs(sources)
    methods = group_runs(keep_shifts(runs, shifts) if shifts else runs)
    accuracy = add_choices(add_group_columns(summarize_metric(methods, 'top1'), read_metrics(methods)), methods)
    others = [summary for key in METRICS if key != 'top1' and (summary := summarize_metric(methods, key))]
    lines = robustness = None
    if accuracy.id_set and accuracy.shifts:
        lines = fit_lines(line_file, accuracy.id_set, accuracy.shifts)
        if lines.lines:
            accuracy, robustness = add_effective_robustness(accuracy, methods, lines)
    changes = compare_classes(methods, *compare) if compare else {}
    notes = find_differences(run for seeds in methods.values() for run in seeds)
    return Contents(methods, accuracy, others, robustness, lines if robustness else None, changes, compare, notes)


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
