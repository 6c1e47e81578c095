"""What WiSE-FT writes: a table, a curve, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation import describe_checkpoint, describe_run, list_notes
from ..files import write_json, write_tensors, write_text
from ..reporting import save_figure, wise_ft_curve
from ..reporting.groups import add_group_columns
from ..reporting.summary import Summary, summarize
from ..reporting.tables import summary_markdown
from .provenance import read_command, read_selection, read_training_settings

if TYPE_CHECKING:
    from .wise_ft import WiSEFTLoop

DEFAULT_ALPHA = 0.5
"""The publication reports this α. The best α of a shift cannot be known without its labels."""


def describe_line(loop: WiSEFTLoop, runs: dict[float, dict]) -> dict:
    """Return the contents of ``wise_ft.json`` (docs/evaluation.md).

    Args:
        loop (WiSEFTLoop): A loop that has run.
        runs (dict): For every α the contents of a metrics.json.
    """
    shared = next(iter(runs.values()))
    per_alpha = ('metrics', 'per_class', 'per_class_count', 'reliability', 'groups')
    return dict(
        {key: value for key, value in shared.items() if key not in ('sets', 'metrics', 'ood_average', 'wise_ft_alpha')},
        default_alpha=DEFAULT_ALPHA,
        ood_average_over=loop.averaged,
        sets={
            name: {key: value for key, value in part.items() if key not in per_alpha}
            for name, part in shared['sets'].items()
        },
        line=[dict(alpha=alpha, metrics=run['metrics']) for alpha, run in runs.items()],
    )


def _run_at(loop: WiSEFTLoop, alpha: float, config: str, checkpoint: dict | None, meta: dict) -> dict:
    run = describe_run(
        loop,
        config,
        checkpoint,
        meta.get('seed'),
        loop.model.data_preprocessor,
        loop.by_alpha[alpha],
        f'{Path(config).stem}_wise_ft',
        read_training_settings(meta),
        read_selection(meta),
        read_command(),
    )
    return dict(run, wise_ft_alpha=alpha)


def line_summary(line: dict) -> Summary:
    """The accuracies at every α, of a result of :func:`describe_line`, for the tables of :mod:`mmcfmask.reporting`."""
    metrics = {f'{part["alpha"]:g}': by_set(part['metrics']) for part in line['line']}
    results = {
        alpha: {name: values['top1'] for name, values in sets.items() if 'top1' in values and name != 'ood_average'}
        for alpha, sets in metrics.items()
    }
    names = list(next(iter(results.values())))
    id_set = line['id_set'] if line['id_set'] in names else None
    shifts = [name for name in names if name in line['ood_average_over']]
    apart = [name for name in names if name not in (id_set, *shifts)]
    summary = summarize(results, id_set, shifts, apart=apart)
    return add_group_columns(summary, {alpha: [sets] for alpha, sets in metrics.items()})


def by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``{'<set>/<metric>': value}`` as ``{set: {metric: value}}``."""
    sets: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name, _, metric = key.rpartition('/')
        sets.setdefault(name, {})[metric] = value
    return sets


def line_notes(line: dict) -> list[str]:
    """What a table of a result of :func:`describe_line` does not say."""
    notes = [f'α = 0: pretrained; α = 1: {line["checkpoint"]["path"] if line["checkpoint"] else "fine-tuned"}.']
    if any(part['alpha'] == line['default_alpha'] for part in line['line']):
        notes.append(f'α = {line["default_alpha"]:g} (bold) is the default to report; no test set chooses α.')
    return notes + list_notes(line)


# The row of the default α is bold, and no best values: the best α of a shift is not a result, as choosing it needs the
# labels of the shift.
TABLE = dict(highlight=f'{DEFAULT_ALPHA:g}', first_column='α')


def write_results(
    loop: WiSEFTLoop, folder: Path, config: str, checkpoint: str | None = None, meta: dict | None = None
) -> dict:
    """Write the results of a loop that has run.

    ``wise_ft.json`` and ``wise_ft.md`` hold all α. The curve, ``wise_ft.png`` and ``wise_ft.pdf``, needs the ID set, a
    shift and several α. ``metrics.json`` is of the default α, if it was evaluated.

    Args:
        loop (WiSEFTLoop): The loop.
        folder (Path): Where to write.
        config (str): The config file.
        checkpoint (str, optional): The fine-tuned weights.
        meta (dict, optional): Of the checkpoint.

    Returns:
        dict: ``line``, the contents of wise_ft.json, and ``written``, the paths.
    """
    described = describe_checkpoint(checkpoint)  # once, since it reads the whole file
    runs = {alpha: _run_at(loop, alpha, config, described, meta or {}) for alpha in loop.alphas}
    line = describe_line(loop, runs)
    written = [folder / 'wise_ft.json', folder / 'wise_ft.md']
    write_json(written[0], line)
    notes = ''.join(f'\n{note}\n' for note in line_notes(line))
    write_text(written[1], summary_markdown(line_summary(line), **TABLE) + notes)
    if DEFAULT_ALPHA in runs:
        written.append(folder / 'metrics.json')
        write_json(written[-1], runs[DEFAULT_ALPHA])
    points = {
        part['alpha']: (part['metrics'][f'{loop.id_set}/top1'], part['metrics']['ood_average/top1'])
        for part in line['line']
        if {f'{loop.id_set}/top1', 'ood_average/top1'} <= part['metrics'].keys()
    }
    if len(points) > 1:
        written += save_figure(wise_ft_curve(points, DEFAULT_ALPHA), folder / 'wise_ft.png', pdf=True)
    return dict(line=line, written=written)


def save_interpolated(loop: WiSEFTLoop, alpha: float, path: Path, meta: dict | None = None) -> None:
    """Write the weights at one α as a checkpoint for tools/test.py."""
    weights = {name: value.cpu() for name, value in loop.line.at(alpha).items()}
    write_tensors(path, dict(meta=dict(meta or {}, wise_ft_alpha=alpha), state_dict=weights))
