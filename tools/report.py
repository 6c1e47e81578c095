#!/usr/bin/env python3
"""Tables and figures over runs that were tested with ``tools/test.py --out metrics.json``.

    python tools/report.py work_dirs/ft work_dirs/cfmask --out report/          # every metrics.json in and under these
    folders python tools/report.py Zero-shot=zs/metrics.json FT=work_dirs/ft CFMask=work_dirs/cfmask --compare Zero-shot
    FT python tools/report.py work_dirs --shifts imagenet-r imagenet-a --line my_models.csv

Runs are grouped by method (the name in the file, or NAME=FOLDER) over seeds. docs/report.md says what is written.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from mmcfmask.engine.options import file_name
from mmcfmask.evaluation import effective_robustness, read_reference_models, reference_line, reference_points
from mmcfmask.evaluation.effective_robustness import REFERENCE_MODELS, Line, measured_sets
from mmcfmask.files import json_text, write_text
from mmcfmask.output import run_tool
from mmcfmask.reporting import (
    class_change_figure,
    class_changes,
    id_ood_scatter,
    merge_bins,
    reliability_diagram,
    save_figure,
)
from mmcfmask.reporting.class_change import ClassChange
from mmcfmask.reporting.runs import (
    Run,
    differences_of,
    find_problems,
    find_runs,
    group_runs,
    metric_of,
    sets_of,
    transform_of,
)
from mmcfmask.reporting.style import SET_NAMES
from mmcfmask.reporting.tables import (
    EFFECTIVE_ROBUSTNESS,
    MARK,
    METRICS,
    OOD_AVERAGE,
    Stat,
    Summary,
    markdown_table,
    summaries_csv,
    summarize,
    summary_dict,
    summary_markdown,
    summary_table,
    with_column,
)

console = Console()


class Lines(NamedTuple):
    """Lines fitted on reference models.

    Attributes:
        source: Where the models are from.
        models: How many there are.
        lines: ``{shift, or OOD average: (line, (N, 2) the accuracies it was fitted on)}``.
    """

    source: str
    models: int
    lines: dict[str, tuple[Line, np.ndarray]]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Tables and figures over tested runs')
    parser.add_argument(
        'runs', nargs='+', metavar='[NAME=]RUN', help='folders with metrics.json in or below them, or such files'
    )
    parser.add_argument('--out', type=file_name, default='report', help='folder for the report (default: %(default)s)')
    parser.add_argument(
        '--shifts', nargs='+', metavar='SET', help='only these shifts, in this order (default: all that were tested)'
    )
    parser.add_argument(
        '--line',
        metavar='FILE.csv',
        help='accuracies of reference models for effective robustness: columns "model" and '
        'one for each set (default: 85 models trained on ImageNet, which come with the package)',
    )
    parser.add_argument('--compare', nargs=2, metavar=('BEFORE', 'AFTER'), help='two methods to compare class by class')
    return parser.parse_args(argv)


def choose_shifts(runs: Sequence[Run], shifts: Sequence[str]) -> list[Run]:
    """The runs with only the in-distribution set and these shifts, in this order.

    Raises:
        ValueError: If no run was tested on one of the shifts, or a run on none of them.
    """
    known = [name for name in sets_of(runs) if name not in {run.id_set for run in runs}]
    if unknown := [name for name in shifts if name not in known]:
        raise ValueError(
            f'--shifts: no run was tested on {", ".join(unknown)}; the runs have {", ".join(known) or "no shifts"}'
        )
    chosen = []
    for run in runs:
        wanted = (run.id_set, *shifts)
        sets = {name: run.sets[name] for name in wanted if name in run.sets}
        if not sets:
            raise ValueError(f'{run.path}: tested on none of {", ".join(wanted)}')
        chosen.append(
            run._replace(sets=sets, missing={name: why for name, why in run.missing.items() if name in wanted})
        )
    return chosen


def summary_of(methods: Mapping[str, list[Run]], key: str) -> Summary | None:
    """Table of one metric; None if no run has it."""
    values = metric_of(methods, key)
    runs = [run for seeds in methods.values() for run in seeds]
    id_set, have = runs[0].id_set, {name for seeds in values.values() for name in seeds[0]}
    if not have:
        return None
    measured = [name for name in sets_of(runs) if name in have and name != id_set]
    with_accuracy = {name for seeds in metric_of(methods, 'top1').values() for name in seeds[0] if name != id_set}
    average = with_accuracy <= have  # what only some sets have, such as mCE, has none
    marks = {
        method: {name: why for name, why in find_problems(seeds).items() if average or name in have}
        for method, seeds in methods.items()
    }
    return summarize(values, id_set if id_set in have else None, measured, METRICS[key], marks, average)


def fit_lines(path: str | None, id_set: str, shifts: Sequence[str]) -> Lines:
    """Lines of each shift, and of their average, that the reference models in a CSV file (None: the package's) were
    measured on.

    Raises:
        FileNotFoundError, ValueError: If the file cannot be read, is given but has none of the sets, or no line fits.
    """
    models = read_reference_models(path or REFERENCE_MODELS)
    known = measured_sets(models)
    have = [shift for shift in shifts if shift in known] if id_set in known else []
    if path and not have:
        raise ValueError(
            f'{path}: its columns must be the in-distribution set {id_set!r} and at least one of the shifts '
            f'{", ".join(shifts)}; it has {", ".join(known)}'
        )
    columns = {shift: [shift] for shift in have} | (
        {OOD_AVERAGE: list(shifts)} if have and have == list(shifts) else {}
    )
    try:
        lines = {
            c: (reference_line(models, id_set, s), reference_points(models, id_set, s)) for c, s in columns.items()
        }
    except ValueError as error:
        raise ValueError(f'{path or REFERENCE_MODELS}: {error}') from None
    return Lines(path or 'trained on ImageNet only, Taori et al. 2020', len(models), lines)


def robustness_of(accuracy: Summary, methods: Mapping[str, list[Run]], lines: Lines) -> tuple[Summary, Summary | None]:
    """The table of accuracies with a column of effective robustness, and the table of effective robustness for every
    shift."""
    id_set, values = accuracy.id_set, {}
    notes = [
        f'Percentage points above the line fitted on {lines.models} reference models ({lines.source}). {OOD_AVERAGE}: '
        'above the line of the average accuracy.'
    ]
    for method, runs in metric_of(methods, 'top1').items():
        values[method] = [
            {
                column: float(effective_robustness(run[id_set], mean(run[shift] for shift in needed), line))
                for column, (line, _) in lines.lines.items()
                if (needed := accuracy.shifts if column == OOD_AVERAGE else [column])
                and {id_set, *needed} <= run.keys()
            }
            for run in runs
        ]
        low, high = next(iter(lines.lines.values()))[0].id_range if lines.lines else (0, 100)
        outside = [run[id_set] for run in runs if id_set in run and not low <= run[id_set] <= high]
        if values[method][0] and outside:
            notes.append(
                f'{method}: ID accuracy {outside[0]:.1f} is outside the {low:.1f} to {high:.1f} of the reference '
                'models; the line is extrapolated.'
            )
    values = {method: runs for method, runs in values.items() if runs[0]}
    if not values:
        return accuracy, None
    shifts = tuple(name for name in accuracy.shifts if name in lines.lines)
    rows = {m: {column: Stat.of([run[column] for run in runs]) for column in runs[0]} for m, runs in values.items()}
    # A point is as trustworthy as the two accuracies that it is made of.
    marked = {
        (m, c): ', '.join(wrong)
        for m, row in rows.items()
        for c in row
        if (wrong := [name for name in (id_set, c) if (m, name) in accuracy.marked])
    }
    notes += [note for note in accuracy.notes if note.startswith((MARK, '±'))]
    table = Summary(None, shifts, rows, tuple(notes), marked, EFFECTIVE_ROBUSTNESS, average=OOD_AVERAGE in lines.lines)
    averages = {m: [run[OOD_AVERAGE] for run in runs] for m, runs in values.items() if OOD_AVERAGE in runs[0]}
    if averages:
        note = f'Eff. rob.: effective robustness, points of the {OOD_AVERAGE} above what the ID accuracy predicts (next table).'
        accuracy = with_column(accuracy, 'Eff. rob.', averages, note, (id_set, OOD_AVERAGE))
    return accuracy, table


def changes_of(methods: Mapping[str, list[Run]], before: str, after: str) -> dict[str, list[ClassChange]]:
    """``{set: changes of its classes}`` between two methods, for the sets both were tested on; means over seeds.

    Raises:
        ValueError: If there is no such method, or the runs hold no accuracies of classes.
    """
    for name in (before, after):
        if name not in methods:
            raise ValueError(f'--compare: no method {name!r}; there are {", ".join(methods)}')
    accuracies, counts = [], {}
    for name in (before, after):
        accuracies.append({})
        for set_name in sets_of(methods[name]):
            runs = [run.sets[set_name].get('per_class') for run in methods[name] if set_name in run.sets]
            if all(runs):
                accuracies[-1][set_name] = {
                    c: mean(run[c] for run in runs) for c in runs[0] if all(c in run for run in runs)
                }
                counts[set_name] = methods[name][0].sets[set_name].get('per_class_count')
    shared = [name for name in accuracies[0] if name in accuracies[1]]
    changes = {name: class_changes(accuracies[0][name], accuracies[1][name], counts[name]) for name in shared}
    changes = {name: rows for name, rows in changes.items() if rows}
    if not changes:
        raise ValueError(
            f'--compare: {before!r} and {after!r} share no set with accuracies of classes (per_class in metrics.json)'
        )
    return changes


def changes_csv(changes: Mapping[str, list[ClassChange]], id_set: str) -> str:
    """All changes; beside each the change of the class of the same name in distribution, if there is one."""
    in_distribution = {c.name: c.change for c in changes.get(id_set, [])}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['set', 'class', 'images', 'before', 'after', 'change', 'change in distribution'])
    for name, rows in changes.items():
        for c in rows:
            numbers = (c.before, c.after, c.change, in_distribution.get(c.name))
            writer.writerow([name, c.name, c.count, *('' if number is None else f'{number:.4g}' for number in numbers)])
    return file.getvalue()


def changes_markdown(changes: Mapping[str, list[ClassChange]]) -> str:
    header = ['Set', 'Greatest losses', 'Classes', 'lost', 'gained', 'unchanged', 'Mean change']
    rows = []
    for name, all_changes in changes.items():
        worst = ', '.join(f'{c.name} {c.change:+.0f}' for c in all_changes[:3] if c.change < 0) or '–'
        numbers = [
            sum(test(c.change) for c in all_changes)
            for test in ((lambda x: x < 0), (lambda x: x > 0), (lambda x: x == 0))
        ]
        rows.append(
            [name, worst, str(len(all_changes)), *map(str, numbers), f'{mean(c.change for c in all_changes):+.1f}']
        )
    return markdown_table(header, rows, left=2)


def lines_markdown(lines: Lines) -> str:
    rows = [
        [
            column,
            str(line.models),
            f'{line.slope:.3f}',
            f'{line.intercept:+.3f}',
            f'{line.r2:.3f}',
            f'{line.id_range[0]:.1f} to {line.id_range[1]:.1f}',
        ]
        for column, (line, _) in lines.lines.items()
    ]
    return markdown_table(['Line of', 'Models', 'Slope', 'Intercept', 'R²', 'ID accuracies'], rows)


def corruptions_markdown(methods: Mapping[str, list[Run]]) -> str | None:
    """Error of every corruption over AlexNet's, a row for each; None if no run has them."""
    found = {}
    for method, runs in methods.items():
        metrics = [result['metrics'] for run in runs for result in run.sets.values()]
        for key in dict.fromkeys(key for m in metrics for key in m if key.startswith('ce_')):
            found.setdefault(key, {})[method] = Stat.of([m[key] for m in metrics if key in m])
    if not found:
        return None
    rows = [
        [key[3:].replace('_', ' '), *(row[m].text() if m in row else '–' for m in methods)]
        for key, row in found.items()
    ]
    return markdown_table(['Corruption', *methods], rows)


def sets_markdown(runs: Sequence[Run]) -> str:
    """What was tested: images, classes and transform of every set, as far as the files say."""
    rows = {}  # runs that were tested alike share a row
    for name in sets_of(runs):
        for result in (run.sets[name] for run in runs if name in run.sets):
            counts = (result.get(key) for key in ('images', 'published_images', 'classes', 'skipped'))
            row = (
                name,
                str(result.get('dataset', '')),
                '; '.join(map(str, result.get('notes') or [])),
                transform_of(result),
            )
            rows[(*row, *('–' if count is None else f'{count:,}' for count in counts))] = None
    return markdown_table(
        ['Set', 'Dataset', 'Notes', 'Transform', 'Images', 'Published', 'Classes', 'Unreadable'], list(rows), left=4
    )


def runs_markdown(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        checkpoint, versions = run.content.get('checkpoint') or {}, run.content.get('versions') or {}
        versions = ', '.join(f'{name} {versions[name]}' for name in ('mmcfmask', 'torch') if name in versions)
        rows.append(
            [
                run.method,
                '–' if run.seed is None else str(run.seed),
                str(run.path),
                str(run.content.get('config', '')),
                (checkpoint.get('sha256') or '–')[:12],
                versions,
            ]
        )
    return markdown_table(['Method', 'Seed', 'File', 'Config', 'SHA-256 of the checkpoint', 'Versions'], rows, left=6)


def slug(name: str, taken: set) -> str:
    """A file name for a method or set; different names get different ones."""
    base = re.sub(r'[^\w.-]+', '_', name).strip('._') or 'method'
    free = next(
        text for i in range(1, len(taken) + 2) if (text := base if i == 1 else f'{base}_{i}').lower() not in taken
    )
    taken.add(free.lower())
    return free


class Contents(NamedTuple):
    """What a report says.

    Attributes:
        methods: ``{method: runs}``.
        accuracy: Top-1 accuracies, with a column of effective robustness where there is one.
        others: Tables of the other metrics.
        robustness: Effective robustness of every shift; None where there are no reference models.
        lines: Of the reference models; None without them.
        changes: ``{set: changes of its classes}`` between the two methods of ``compare``.
        compare: Names of two methods; None if none were asked for.
        notes: What makes numbers of one column not comparable.
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


def gather(
    sources: Sequence[str],
    shifts: Sequence[str] | None = None,
    line_file: str | None = None,
    compare: Sequence[str] | None = None,
) -> Contents:
    """Read runs and work out all that is shown of them.

    Args:
        sources: Of :func:`find_runs`.
        shifts: Names of shifts; None for all.
        line_file: CSV of reference models; None for that of the package.
        compare: Names of two methods to compare class by class.

    Raises:
        FileNotFoundError, ValueError: Something cannot be read, or does not fit together.
    """
    runs = find_runs(sources)
    methods = group_runs(choose_shifts(runs, shifts) if shifts else runs)
    accuracy = summary_of(methods, 'top1')
    others = [summary for key in METRICS if key != 'top1' and (summary := summary_of(methods, key))]
    lines = robustness = None
    if accuracy.id_set and accuracy.shifts:
        lines = fit_lines(line_file, accuracy.id_set, accuracy.shifts)
        if lines.lines:
            accuracy, robustness = robustness_of(accuracy, methods, lines)
    changes = changes_of(methods, *compare) if compare else {}
    notes = differences_of(run for seeds in methods.values() for run in seeds)
    return Contents(methods, accuracy, others, robustness, lines if robustness else None, changes, compare, notes)


def figures_of(contents: Contents) -> dict[str, dict[str, tuple]]:
    """``{chapter: {file name: (caption, function that draws it)}}``.

    Raises:
        ValueError: If the seeds of a method have different numbers of confidence bins.
    """
    methods, accuracy, changes = contents.methods, contents.accuracy, contents.changes
    top1, id_set = metric_of(methods, 'top1'), accuracy.id_set
    scatters, diagrams, class_figures = {}, {}, {}
    averages = {OOD_AVERAGE: accuracy.shifts} if len(accuracy.shifts) > 1 else {}
    for column, shifts in ({**averages, **{shift: [shift] for shift in accuracy.shifts}} if id_set else {}).items():
        points = {
            m: [(run[id_set], mean(run[s] for s in shifts)) for run in runs]
            for m, runs in top1.items()
            if {id_set, *shifts} <= runs[0].keys()
        }
        if not points:
            continue
        line, reference = contents.lines.lines.get(column, (None, None)) if contents.lines else (None, None)
        ylabel = (
            f'Average of {len(shifts)} shifts (%)'
            if column == OOD_AVERAGE
            else f'{SET_NAMES.get(column, column)} accuracy (%)'
        )
        options = dict(
            logit=True,
            xlabel=f'{SET_NAMES.get(id_set, id_set)} accuracy (%)',
            ylabel=ylabel,
            line=line and line.predict,
            reference=reference,
            line_label='reference models',
        )
        scatters[f'id_ood_{"average" if column == OOD_AVERAGE else column}'] = (
            f'{id_set} against {column}',
            lambda points=points, options=options: id_ood_scatter(points, **options),
        )

    taken: set = set()
    ece = metric_of(methods, 'ece')
    for method, runs in methods.items():
        bins = {
            name: [
                run.sets[name]['reliability'] for run in runs if name in run.sets and run.sets[name].get('reliability')
            ]
            for name in sets_of(runs)
        }
        bins = {SET_NAMES.get(name, name): merge_bins(seeds) for name, seeds in bins.items() if seeds}
        if not bins:
            continue
        notes = {
            SET_NAMES.get(name, name): f'ECE {mean(run[name] for run in ece[method]):.1f}'
            for name in ece.get(method, [{}])[0]
        }
        diagrams[f'reliability_{slug(method, taken)}'] = (
            method,
            lambda bins=bins, notes=notes: reliability_diagram(bins, notes),
        )

    taken = set()
    for name, rows in changes.items():
        label = f'{SET_NAMES.get(name, name)} accuracy (%)'
        class_figures[f'class_change_{slug(name, taken)}'] = (
            name,
            lambda rows=rows, label=label: class_change_figure(rows, *contents.compare, xlabel=label),
        )
    return {'In distribution against shift': scatters, 'Change of each class': class_figures, 'Reliability': diagrams}


def report_markdown(contents: Contents, figures: Mapping[str, Mapping[str, tuple]]) -> str:
    """The report as one Markdown document."""
    runs, accuracy = contents.runs, contents.accuracy
    text = ['# Report\n', f'Runs: {len(runs)}; methods: {len(contents.methods)}.\n']
    if accuracy.id_set is None:
        text.append(
            f'No run was tested on the in-distribution set {runs[0].id_set}: no figures against it, no effective '
            'robustness.\n'
        )
    text += ['## Top-1 accuracy (%)\n', summary_markdown(accuracy)]
    if contents.notes:
        text += ['Not tested alike, compare with care:\n', *(f'- {note}' for note in contents.notes), '']
    if contents.robustness:
        text += [
            '## Effective robustness (percentage points)\n',
            summary_markdown(contents.robustness),
            lines_markdown(contents.lines),
        ]
    for summary in contents.others:
        better = 'higher' if summary.metric.higher_is_better else 'lower'
        text += [f'## {summary.metric.label} ({summary.metric.unit}; {better} is better)\n', summary_markdown(summary)]
    if corruptions := corruptions_markdown(contents.methods):
        text += ['## Corruptions (% of the error of AlexNet; lower is better)\n', corruptions]
    for chapter, pictures in figures.items():
        if not pictures:
            continue
        if chapter == 'Change of each class':
            text += [
                f'## {chapter}: {contents.compare[0]} → {contents.compare[1]}\n',
                changes_markdown(contents.changes),
            ]
        else:
            text.append(f'## {chapter}\n')
        text += [f'![{caption}](figures/{name}.png)\n' for name, (caption, _) in pictures.items()]
    return '\n'.join([*text, '## Sets\n', sets_markdown(runs), '## Runs\n', runs_markdown(runs)])


def report_json(contents: Contents) -> str:
    """Everything as JSON; of the runs, all but the long lists."""
    long = ('per_class', 'per_class_count', 'reliability')
    lines, compare = contents.lines, contents.compare
    runs = [
        dict(
            run.content,
            method=run.method,
            file=str(run.path),
            sets={name: {k: v for k, v in result.items() if k not in long} for name, result in run.sets.items()},
        )
        for run in contents.runs
    ]
    everything = dict(
        id_set=contents.runs[0].id_set,
        shifts=list(contents.accuracy.shifts),
        notes=contents.notes,
        accuracy=summary_dict(contents.accuracy),
        effective_robustness=summary_dict(contents.robustness) if lines else None,
        lines=dict(source=lines.source, **{c: line._asdict() for c, (line, _) in lines.lines.items()})
        if lines
        else None,
        metrics={summary.metric.label: summary_dict(summary) for summary in contents.others},
        class_change=dict(
            before=compare[0],
            after=compare[1],
            sets={name: [dict(c._asdict(), change=c.change) for c in rows] for name, rows in contents.changes.items()},
        )
        if compare
        else None,
        runs=runs,
    )
    return json_text(everything, indent=1)


def write_report(contents: Contents, figures: Mapping[str, Mapping[str, tuple]], out: Path) -> None:
    """Write report.md, report.json, the tables as CSV, and figures/."""
    jobs = [(name, draw) for chapter in figures.values() for name, (_, draw) in chapter.items()]
    for name, draw in track(jobs, 'drawing figures', console=console, transient=True):
        save_figure(draw(), out / 'figures' / f'{name}.png', pdf=True)
    files = {
        'report.md': report_markdown(contents, figures),
        'report.json': report_json(contents),
        'accuracy.csv': summaries_csv([contents.accuracy]),
        'metrics.csv': summaries_csv(contents.others) if contents.others else None,
        'effective_robustness.csv': summaries_csv([contents.robustness]) if contents.robustness else None,
        'class_change.csv': changes_csv(contents.changes, contents.runs[0].id_set) if contents.changes else None,
    }
    for name, text in files.items():
        if text is not None:
            write_text(out / name, text)
        else:  # of an earlier report in the same folder
            (out / name).unlink(missing_ok=True)


def main(argv=None) -> None:
    args = parse_args(argv)
    try:
        contents = gather(args.runs, args.shifts, args.line, args.compare)
        figures = figures_of(contents)
    except (ValueError, OSError) as error:
        raise SystemExit(f'report.py: {error}') from None
    try:
        write_report(contents, figures, Path(args.out))
    except OSError as error:
        raise SystemExit(f'report.py: {error}') from None
    console.print(summary_table(contents.accuracy))
    console.print(
        f'report: {Path(args.out) / "report.md"} (beside it report.json, tables as CSV, figures/ as PNG and PDF)',
        highlight=False,
        soft_wrap=True,
    )


if __name__ == '__main__':
    run_tool(main)
