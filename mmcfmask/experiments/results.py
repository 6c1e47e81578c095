"""The results of a study: tables, a scatter plot and one line per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement

from ..errors import ConfigError
from ..files import write_text
from ..reporting import group_scatter, id_ood_points, id_ood_scatter, save_figure, summary_table
from ..reporting.choices import add_choices
from ..reporting.examples import find_panels
from ..reporting.few_shot_curves import few_shot_figure, few_shot_markdown
from ..reporting.groups import add_group_columns, group_points, read_metrics, sets_with_groups, sets_without_top1
from ..reporting.order import Order, sort_methods
from ..reporting.page import PAGE, write_page
from ..reporting.runs import Run, collect_metric, find_problems, read_run
from ..reporting.style import assign_looks
from ..reporting.summary import Summary, summarize
from ..reporting.tables import summary_json, summary_markdown


def describe_run(path: Path, id_set: str) -> str:
    """Describe a metrics.json in one line: the accuracy in distribution, of its worst group, and the mean of the
    shifts."""
    run = read_run(path)
    accuracies = collect_metric({run.method: [run]}, 'top1')[run.method][0]
    apart = (id_set, *sets_with_groups(read_metrics({run.method: [run]})[run.method], id_set))
    shifts = [value for name, value in accuracies.items() if name not in apart]
    parts = [f'{id_set} {accuracies[id_set]:.1f}'] if id_set in accuracies else []
    parts += [
        f'{name} worst group {result["metrics"]["worst_group"]:.1f}'
        for name, result in run.sets.items()
        if 'worst_group' in result['metrics']
    ]
    return ', '.join(parts + ([f'OOD average {sum(shifts) / len(shifts):.1f}'] if shifts else []))


def write_results(
    console: Console,
    folder: Path,
    methods: Mapping[str, list[Run]],
    id_set: str,
    order: Sequence[str],
    title: str = '',
    pictures: bool = True,
) -> Summary | None:
    """Print the table of one data set; write it as results.md and results.json, scatter plots (id_ood.png where there
    are shifts, worst_group.png where there are groups), and the report page.

    Args:
        console (Console): Where to print.
        folder (Path): Where to write.
        methods (Mapping): Method to its finished runs.
        id_set (str): Name of the in-distribution set.
        order (Sequence[str]): Names of the test sets in the order of the columns; others follow.
        title (str): Name of the data set.
        pictures (bool): Whether to list the counterfactual images in the folder.

    Returns:
        Summary: What the table shows; None if there is no table.
    """
    try:
        results = collect_metric(methods, 'top1')
    except ValueError as error:  # a test set was added between two runs
        text = f'{title}: no table: {error}'.removeprefix(': ')
        console.print(text, style='bold red', highlight=False, markup=False)
        console.print('Delete the metrics.json that lacks a set; the same command tests that run again.')
        return None
    marks = {name: find_problems(runs) for name, runs in methods.items()}
    tested = {name for runs in results.values() for name in runs[0]}
    metrics = read_metrics(methods)
    everything = [run for runs in metrics.values() for run in runs]
    apart = sets_with_groups(everything, id_set)
    shifts = [name for name in dict.fromkeys([*order, *sorted(tested)]) if name in tested - {id_set, *apart}]
    uncounted = sets_without_top1(everything)
    id_set = id_set if id_set in tested else None
    summary = summarize(results, id_set, shifts, marks=marks, apart=apart, uncounted=uncounted)
    summary = add_choices(add_group_columns(summary, metrics), methods)
    table = summary_table(summary, title or None)
    needed = Measurement.get(console, console.options.update(width=1000), table).minimum
    # A narrow terminal wraps lines, but no column is lost.
    console.print(table, width=max(console.width, needed), crop=False)
    written = {'table': [folder / 'results.md', folder / 'results.json']}
    write_text(folder / 'results.md', summary_markdown(summary))
    write_text(folder / 'results.json', summary_json(summary, results))
    looks = assign_looks(methods)
    size = (3.4, 2.9) if len(methods) <= 8 else (7, 5.6)
    figures = {}
    if summary.id_set and (points := id_ood_points(results, id_set, shifts)):
        figures['id_ood.png'] = id_ood_scatter(points, size=size, looks=looks)
    by_set = group_points(metrics)
    for name, points in by_set.items():
        file = 'worst_group.png' if len(by_set) == 1 else f'worst_group_{name}.png'
        figures[file] = group_scatter(points, size, looks)
    for file, figure in figures.items():
        save_figure(figure, folder / file)
        written.setdefault('scatter', []).append(folder / file)
    panels = find_panels([folder]) if pictures else []
    if panels:
        written['counterfactuals'] = panels
    try:
        write_page(folder / PAGE, sort_methods(methods, Order(list(methods), list(order))), panels, title)
        written['page'] = [folder / PAGE]
    except ConfigError as error:  # runs that tools/report.py would refuse, such as seeds of two versions
        console.print(f'no page: {error}', style='yellow', highlight=False, markup=False, soft_wrap=True)
    for what, paths in written.items():
        console.print(f'{what + ":":17}{"  ".join(map(str, paths))}', highlight=False, soft_wrap=True)
    return summary


def write_average(
    console: Console, folder: Path, test_set: str, finished: Mapping[str, Mapping[str, list[Run]]]
) -> None:
    """Print and write the mean of one test set over the data sets of a study, as ``average.md`` and ``average.json``.

    A benchmark that leaves out one domain after the other is the mean over its domains. It is taken for every seed
    that a method has on all data sets, then over the seeds.

    Args:
        console (Console): Where to print.
        folder (Path): Where to write.
        test_set (str): The name of the set, the same in all data sets.
        finished (Mapping): Data set to method to its finished runs.
    """
    results, marks, left_out = {}, {}, []
    for method in dict.fromkeys(name for methods in finished.values() for name in methods):
        runs = {dataset: {run.seed: run for run in methods.get(method, ())} for dataset, methods in finished.items()}
        seeds = [seed for seed in next(iter(runs.values())) if all(seed in by_seed for by_seed in runs.values())]
        tested = [seed for seed in seeds if all('top1' in by_seed[seed].metrics(test_set) for by_seed in runs.values())]
        if not tested:
            left_out.append(method)
            continue
        results[method] = [
            {dataset: float(by_seed[seed].metrics(test_set)['top1']) for dataset, by_seed in runs.items()}
            for seed in tested
        ]
        problems = {dataset: find_problems(by_seed.values()) for dataset, by_seed in runs.items()}
        marks[method] = {dataset: found[test_set] for dataset, found in problems.items() if test_set in found}
    if results:
        summary = summarize(results, None, marks=marks)
        console.print(summary_table(summary, f'{test_set} of every data set'))
        write_text(folder / 'average.md', summary_markdown(summary))
        write_text(folder / 'average.json', summary_json(summary, results))
        console.print(f'{"average:":17}{folder / "average.md"}  {folder / "average.json"}', highlight=False)
    if left_out:
        console.print(
            f'Not in the average of {test_set}, for lack of a seed on every data set: {", ".join(left_out)}',
            highlight=False,
        )


def write_few_shot(console: Console, folder: Path, dataset: str, summaries: Mapping[int, Summary]) -> None:
    """Write the results of a few-shot study on one data set against the number of images per class.

    Args:
        console (Console): Where to print the names of the files.
        folder (Path): Where to write ``few_shot.md`` and ``few_shot.png``, with the name of the data set if it has one.
        dataset (str): Name of the data set.
        summaries (Mapping): ``{images per class: results}``.
    """
    stem = folder / f'few_shot_{dataset}'.rstrip('_')
    table, picture = stem.with_name(f'{stem.name}.md'), stem.with_name(f'{stem.name}.png')
    write_text(table, few_shot_markdown(summaries))
    save_figure(few_shot_figure(summaries), picture)
    console.print(f'{"few-shot:":17}{table}  {picture}', highlight=False, soft_wrap=True)
