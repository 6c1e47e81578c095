"""The report as one Markdown document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from .class_change import ClassChange
from .contents import Contents
from .figures import CLASSES, Picture
from .groups import group_tables
from .robustness import Lines
from .runs import Run, describe_transform, list_sets
from .summary import Stat
from .tables import markdown_table, summary_markdown


def report_markdown(contents: Contents, figures: Mapping[str, Sequence[Picture]]) -> str:
    """The report as one Markdown document."""
    runs, accuracy = contents.runs, contents.accuracy
    text = ['# Report\n', f'Runs: {len(runs)}; methods: {len(contents.methods)}.\n']
    if accuracy.id_set is None:
        text.append(
            f'No run was tested on the in-distribution set {runs[0].id_set}, so the report has no figures against it '
            'and no effective robustness.\n'
        )
    text += ['## Top-1 accuracy (%)\n', summary_markdown(accuracy)]
    for name, table in group_tables(contents.methods).items():
        text += [f'## Accuracy in the groups of {name} (%)\n', table]
    if contents.notes:
        text += [
            'The runs were not all tested in the same way; compare with care:\n',
            *(f'- {note}' for note in contents.notes),
            '',
        ]
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
        text += ['## Corruptions (error relative to AlexNet in percent; lower is better)\n', corruptions]
    for chapter, pictures in figures.items():
        if not pictures:
            continue
        text.append(f'## {chapter}' + (f': {" → ".join(contents.compare)}\n' if chapter == CLASSES else '\n'))
        if chapter == CLASSES:
            text.append(changes_markdown(contents.changes))
        text += [f'![{picture.caption}](figures/{picture.name}.png)\n' for picture in pictures]
    return '\n'.join([*text, '## Sets\n', sets_markdown(runs), '## Runs\n', runs_markdown(runs)])


def changes_markdown(changes: Mapping[str, list[ClassChange]]) -> str:
    """How many classes of each set lost and gained accuracy, and the greatest losses."""
    header = ['Set', 'Greatest losses', 'Classes', 'lost', 'gained', 'unchanged', 'Mean change']
    rows = []
    for name, all_changes in changes.items():
        worst = ', '.join(f'{c.name} {c.change:+.0f}' for c in all_changes[:3] if c.change < 0) or '–'
        lost = sum(c.change < 0 for c in all_changes)
        gained = sum(c.change > 0 for c in all_changes)
        numbers = [lost, gained, len(all_changes) - lost - gained]
        rows.append(
            [name, worst, str(len(all_changes)), *map(str, numbers), f'{mean(c.change for c in all_changes):+.1f}']
        )
    return markdown_table(header, rows, left=2)


def lines_markdown(lines: Lines) -> str:
    """The lines of the reference models, one per row."""
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
    """Error of each corruption relative to the error of AlexNet, one per row; None if no run has any."""
    found = {}
    for method, runs in methods.items():
        metrics = [result['metrics'] for run in runs for result in run.sets.values()]
        for key in dict.fromkeys(key for m in metrics for key in m if key.startswith('ce_')):
            found.setdefault(key, {})[method] = Stat.over([m[key] for m in metrics if key in m])
    if not found:
        return None
    rows = [
        [key[3:].replace('_', ' '), *(row[m].text() if m in row else '–' for m in methods)]
        for key, row in found.items()
    ]
    return markdown_table(['Corruption', *methods], rows)


def sets_markdown(runs: Sequence[Run]) -> str:
    """Images, classes and transform of every set, as far as the files contain them."""
    rows = {}  # runs that were tested alike share a row
    for name in list_sets(runs):
        for result in (run.sets[name] for run in runs if name in run.sets):
            counts = (result.get(key) for key in ('images', 'published_images', 'classes', 'skipped'))
            row = (
                name,
                str(result.get('dataset', '')),
                '; '.join(map(str, result.get('notes') or [])),
                describe_transform(result),
            )
            rows[(*row, *('–' if count is None else f'{count:,}' for count in counts))] = None
    return markdown_table(
        ['Set', 'Dataset', 'Notes', 'Transform', 'Images', 'Published', 'Classes', 'Unreadable'], list(rows), left=4
    )


def runs_markdown(runs: Sequence[Run]) -> str:
    """File, config, checkpoint and versions of every run."""
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
