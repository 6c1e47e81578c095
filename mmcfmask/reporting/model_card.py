"""The card of an exported model: what it is, how it is used, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .tables import markdown_table


def model_card(
    title: str,
    about: str,
    usage: str,
    preprocessing: Mapping[str, str],
    training: Mapping[str, str] | None = None,
    results: Mapping[str, Mapping[str, float]] | None = None,
    tested: str = '',
    provenance: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    library: str | None = None,
    task: str | None = None,
) -> str:
    """The card as Markdown, with the header that the Hugging Face hub reads.

    Args:
        title: Name of the model.
        about: What it is, in a sentence or two.
        usage: Python that loads it.
        preprocessing: Steps to their values.
        training: Settings of the training, see :func:`mmcfmask.engine.provenance.read_training_settings`. None: nothing
            was trained, or nothing is known.
        results: Set to metric to value, of ``metrics.json``. None: it was not tested.
        tested: A sentence about the results.
        provenance: Where weights and results come from: names to values.
        classes: Names, in the order of the logits.
        library: Name of the library for the hub.
        task: Name of the task for the hub.

    Returns:
        The text.
    """
    header = dict(library_name=library, pipeline_tag=task, tags='[clip, mmcfmask, robust-fine-tuning]')
    parts = [
        '---\n' + ''.join(f'{key}: {value}\n' for key, value in header.items() if value) + '---',
        f'# {title}',
        about,
        f'## Use\n\n`FOLDER` is the folder of this file.\n\n```python\n{usage.strip()}\n```',
        f'## Images\n\n{markdown_table(("Step", "Value"), list(preprocessing.items()), left=2)}',
    ]
    if training:
        parts.append(f'## Training\n\n{markdown_table(("Setting", "Value"), list(training.items()), left=2)}')
    if results:
        metrics = list(dict.fromkeys(metric for values in results.values() for metric in values))
        rows = [[name, *(_number(values.get(metric)) for metric in metrics)] for name, values in results.items()]
        parts.append(f'## Results\n\n{markdown_table(("Set", *metrics), rows)}')
    parts.append(tested)
    if provenance:
        parts.append(f'## Provenance\n\n{markdown_table(("What", "Value"), list(provenance.items()), left=2)}')
    if classes:
        parts.append('## Classes\n\n' + ', '.join(f'{index}: {name}' for index, name in enumerate(classes)))
    return '\n\n'.join(part.rstrip('\n') for part in parts if part) + '\n'


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}' if value >= 0.1 else f'{value:.3g}'
