"""The page of all towers, made of the records of :mod:`.tower_trials`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Of weights, gradients and both moments of AdamW of the student, and of weights of the teacher: float32.
BYTES_PER_PARAMETER = 5 * 4
Record = Mapping[str, Any]

# Title, and what the names of the family match; the first match counts.
FAMILIES = (
    ('CoCa', '^coca'),
    ('CLIPA', 'CLIPA'),
    ('SigLIP, SigLIP 2', '(?i)siglip'),
    ('PE-Core', '^PE-'),
    ('EVA', '^EVA'),
    ('MobileCLIP', '^MobileCLIP'),
    ('ViTamin', '^ViTamin'),
    ('ConvNeXt', '^convnext'),
    ('CLIP ResNet', '^RN'),
    ('Swin', '^swin'),
    ('Other ViTs of timm', '^vit_'),
    ('CLIP ViT', ''),
)

# What was tested with real weights, for the families where that is so.
REAL_WEIGHTS = {
    'CLIP ViT': "OpenAI's ViT-B-16: [results](results.md), [maps](relevance.md); the small CLIP of the "
    '[built-in benchmark](shapes.md)'
}

# Marks of the formats of tools/export.py.
FORMATS = dict(open_clip='o', hf='h', mmpretrain='m', torch='t', onnx='x')

# Change of the features, relative to their norm, below which hidden patches have no say.
NO_SAY = 1e-4
# Squared difference of student and teacher at the start, relative to the features, that is rounding.
ROUNDING = 1e-8

HEAD = """\
# Towers

Every image tower of `open_clip.list_models()`: does it build, has it a relevance map, does it train, and does it leave
again? Tried with **random weights and noise for images**: this says what works and what it costs, not how well. Made by

    python tools/towers.py --out docs/results/towers.jsonl --page docs/towers.md

which continues from [towers.jsonl](results/towers.jsonl), where whole messages are, with
{versions}.

Random weights cannot tell whether a map sees the object. So it is open for CLIP's ResNets whether the map of their
attention pool, the default, is better than Grad-CAM (`model.data_preprocessor.relevance=dict(layers='feature_map')`):
`tools/mask_quality.py` compares maps, but pretrained weights were not at hand.
"""

COLUMNS = """\
- **Tower.** Names in one line have the same image tower, up to activation, width of the embedding and weights. The
  first was tried.
- **Map.** Where relevance starts ([backbones.md](backbones.md#relevance-in-every-family-of-towers)), and the grid of
  the masks. The map was finite, not negative and not flat.
- **Variants** that took a training step of {batch} images with finite gradients, of those tried: nine masks x fills for
  towers of little work, the headline variant (object mask, single fill) for larger ones. The
  [tests](../tests/test_benchmarks/test_tower_trials.py) train all nine on a tiny tower of most families.
- **Hiding** (`fill='none'`). *yes*: features do not change if the pixels of hidden patches do. A percentage: they
  change by so much, because tokens after convolutions know their neighbourhood. *no*: refused.
- **Export.** Formats of `tools/export.py` that take the tower: **o**pen_clip, **h**f (transformers), **m**mpretrain,
  **t**orch (`torch.export`, features compared), onn**x**.
- **GB**, float32: weights, gradients, AdamW and teacher + what a step keeps for each image.
- **s**: time of one CPU core for each image of a training step.
"""


def make_page(records: Sequence[Record]) -> str:
    """The page, in Markdown."""
    families: dict[str, list[Record]] = {title: [] for title, _ in sorted(FAMILIES)}
    for record in sorted(records, key=lambda record: (record.get('gflop', 0), record['name'])):
        families[find_family(record['name'])].append(record)
    families = {title: members for title, members in families.items() if members}
    lora = any('lora' in record for record in records)
    rows = []
    for title, members in families.items():
        tried = [record for record in members if 'skipped' not in record]
        rows += [[title * (record is tried[0]), *describe(record, lora)] for record in tried]
    parts = [
        HEAD.format(
            versions=' and with '.join(dict.fromkeys(versions_of(record) for record in records if 'versions' in record))
        ),
        '## Families\n',
        table(
            ['Family', 'Towers', 'Run', 'Map', "`fill='none'`", 'Tested with real weights'],
            [describe_family(title, members) for title, members in families.items()],
        ),
        list_problems(records),
        '## Towers\n',
        COLUMNS.format(batch=records[0]['batch']),
        table(
            ['Family', 'Tower', 'M weights', 'Pixels', 'Gflop', 'Map', 'Variants', 'Hiding', 'Export', 'GB', 's']
            + ['LoRA'] * lora,
            rows,
        ),
        list_skipped(families),
    ]
    return '\n'.join(filter(None, parts))


def find_family(name: str) -> str:
    """The family of a tower by its name."""
    return next(title for title, pattern in FAMILIES if re.search(pattern, name))


def versions_of(record: Record) -> str:
    """Machine and versions of a record."""
    return ', '.join(f'{name} {version}' for name, version in record['versions'].items())


def describe_family(title: str, members: Sequence[Record]) -> list[str]:
    """A row of the table of families."""
    tried = [record for record in members if 'pooling' in record]
    maps = dict.fromkeys(map(name_map, tried))
    hiding = dict.fromkeys('yes' if isinstance(record['hidden'], float) else 'no' for record in tried)
    return [
        title,
        str(sum(len(record['names']) for record in members)),
        f'{len(tried)} of {len(members)}',
        ', '.join(maps),
        ', '.join(hiding),
        REAL_WEIGHTS.get(title, 'no'),
    ]


def name_map(record: Record) -> str:
    """Where relevance starts."""
    return 'Grad-CAM' if record['pooling'] == 'feature map' else record['pooling']


def describe(record: Record, lora: bool) -> list[str]:
    """The row of a tower that was tried, without its family."""
    names = ', '.join(f'`{name}`' for name in record['names'])
    size = '×'.join(map(str, record['image_size'])) if 'image_size' in record else ''
    size = size if len({*record.get('image_size', ())}) > 1 else size.partition('×')[0]
    costs = [f'{record.get("parameters", 0) / 1e6:.3g}', size, f'{record.get("gflop", 0):.3g}']
    if 'variants' not in record:
        return [names, *costs, record['built'].partition(':')[0], *[''] * (5 + lora)]
    tried = {name: text for name, text in record['variants'].items() if not text.startswith('refused')}
    trained = sum(text == 'ok' for text in tried.values())
    fixed = BYTES_PER_PARAMETER * record['parameters'] / 1e9
    return [
        names,
        *costs,
        f'{name_map(record)} {"×".join(map(str, record["grid"]))}',
        f'{trained} of {len(tried)}',
        describe_hiding(record['hidden']),
        ' '.join(mark for name, mark in FORMATS.items() if record['export'].get(name) == 'ok'),
        '' if record['kept'] is None else f'{fixed:.1f} + {record["kept"]:.2g}',
        '' if record['seconds'] is None else f'{record["seconds"]:.2g}',
        *[record.get('lora', '').partition(':')[0]] * lora,
    ]


def describe_hiding(hidden: float | str) -> str:
    """'yes', 'no', or by how much features change with hidden patches, in percent."""
    if isinstance(hidden, str):
        return 'no' if hidden.startswith('refused') else 'failed'
    return 'yes' if hidden < NO_SAY else f'{100 * hidden:.2g} %'


def problems(record: Record) -> Iterator[str]:
    """What did not work in a trial."""
    outcomes = {key: record.get(key, 'ok') for key in ('built', 'map', 'lora')}
    outcomes.update(record.get('variants', {}))
    outcomes.update({f'export to {name}': text for name, text in record.get('export', {}).items()})
    outcomes['hidden patches'] = str(record.get('hidden', ''))
    yield from (f'{part}: {text}' for part, text in outcomes.items() if text.startswith('failed'))
    yield from (f'{part}: {outcomes[part]}' for part in ('built', 'lora') if outcomes[part].startswith('refused'))
    if not record.get('start', 0) < ROUNDING:
        yield f'the distillation starts at {record["start"]:.2g} of the square of the features'
    if record.get('unused'):
        yield f'no gradient for {", ".join(record["unused"])}'


def list_problems(records: Sequence[Record]) -> str:
    """A paragraph, or a list of what did not work."""
    lines = [f'- `{record["name"]}`: {"; ".join(found)}' for record in records if (found := list(problems(record)))]
    if not lines:
        return (
            'None of the towers that were run crashed, gave a flat map, or started with a distillation other than 0.\n'
        )
    return '\n'.join(['What did not work:\n', *lines, ''])


def list_skipped(families: Mapping[str, Sequence[Record]]) -> str:
    """A list of the towers that were not run, with the reason."""
    lines = []
    for title, members in families.items():
        reasons: dict[str, list[str]] = {}
        for record in members:
            if 'skipped' in record:
                reason, _, more = record['skipped'].partition(': ')
                reasons.setdefault(reason, []).append(f'`{record["name"]}`{more and f" ({more})"}')
        lines += [f'- {title}, {reason}: {", ".join(names)}' for reason, names in reasons.items()]
    return '\n'.join(['## Not run\n', *lines, '']) if lines else ''


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, [':---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
