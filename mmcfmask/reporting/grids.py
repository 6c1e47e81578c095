"""Tables of words and numbers, which the Markdown report and the page render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from .class_change import ClassChange
from .robustness import Lines
from .runs import Run, describe_transform, list_sets
from .summary import Stat


class Grid(NamedTuple):
    """A table; its first ``left`` columns are words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def changes_grid(changes: Mapping[str, list[ClassChange]]) -> Grid:
    """How many classes of each set lost and gained accuracy, and the greatest losses."""
    rows = []
    for name, all_changes in changes.items():
        worst = ', '.join(f'{c.name} {c.change:+.0f}' for c in all_changes[:3] if c.change < 0) or '–'
        lost = sum(c.change < 0 for c in all_changes)
        gained = sum(c.change > 0 for c in all_changes)
        numbers = [lost, gained, len(all_changes) - lost - gained]
        rows.append(
            [name, worst, str(len(all_changes)), *map(str, numbers), f'{mean(c.change for c in all_changes):+.1f}']
        )
    return Grid(['Set', 'Greatest losses', 'Classes', 'lost', 'gained', 'unchanged', 'Mean change'], rows, left=2)


def lines_grid(lines: Lines) -> Grid:
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
    return Grid(['Line of', 'Models', 'Slope', 'Intercept', 'R²', 'ID accuracies'], rows)


def corruptions_grid(methods: Mapping[str, list[Run]]) -> Grid | None:
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
    return Grid(['Corruption', *methods], rows)


def sets_grid(runs: Sequence[Run]) -> Grid:
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
    return Grid(
        ['Set', 'Dataset', 'Notes', 'Transform', 'Images', 'Published', 'Classes', 'Unreadable'], list(rows), left=4
    )


def runs_grid(runs: Sequence[Run]) -> Grid:
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
    return Grid(['Method', 'Seed', 'File', 'Config', 'SHA-256 of the checkpoint', 'Versions'], rows, left=6)
