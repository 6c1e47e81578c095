"""The report as one Markdown document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .comparison import NOTE as COMPARISON_NOTE
from .comparison import comparison_grid
from .contents import Contents
from .figures import CLASSES, Picture
from .grids import changes_grid, corruptions_grid, lines_grid, runs_grid, sets_grid
from .groups import group_tables
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
        text += [f'## Accuracy in the groups of {name} (%)\n', markdown_table(*table)]
    if contents.notes:
        text += [
            'Notes on the runs; compare with care:\n',
            *(f'- {note}' for note in contents.notes),
            '',
        ]
    if contents.robustness:
        text += [
            '## Effective robustness (percentage points)\n',
            summary_markdown(contents.robustness),
            markdown_table(*lines_grid(contents.lines)),
        ]
    for summary in contents.others:
        better = 'higher' if summary.metric.higher_is_better else 'lower'
        text += [f'## {summary.metric.label} ({summary.metric.unit}; {better} is better)\n', summary_markdown(summary)]
    if corruptions := corruptions_grid(contents.methods):
        text += [
            '## Corruptions (error relative to AlexNet in percent; lower is better)\n',
            markdown_table(*corruptions),
        ]
    if contents.comparison:
        table = comparison_grid(contents.comparison, *contents.compare)
        text += [
            f'## Paired comparison: {" → ".join(contents.compare)}\n',
            markdown_table(*table),
            COMPARISON_NOTE + '\n',
        ]
    for chapter, pictures in figures.items():
        if not pictures:
            continue
        text.append(f'## {chapter}' + (f': {" → ".join(contents.compare)}\n' if chapter == CLASSES else '\n'))
        if chapter == CLASSES:
            text.append(markdown_table(*changes_grid(contents.changes)))
        text += [f'![{picture.caption}](figures/{picture.name}.png)\n' for picture in pictures]
    return '\n'.join(
        [*text, '## Sets\n', markdown_table(*sets_grid(runs)), '## Runs\n', markdown_table(*runs_grid(runs))]
    )
