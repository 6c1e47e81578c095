import re

import open_clip
from pages import PAGES, ROOT

from mmcfmask.benchmarks.tower_page import FAMILIES, describe_hiding, find_family, make_page, problems
from mmcfmask.benchmarks.tower_runs import read_records
from mmcfmask.benchmarks.tower_trials import list_towers

VERSIONS = dict(open_clip='3', device='a CPU')
RECORD = dict(
    name='ViT-B-32', names=['ViT-B-32', 'roberta-ViT-B-32'], batch=2, parameters=87_800_000, gflop=8.8,
    image_size=[224, 224], memory=2.0, built='ok', pooling='class token', grid=[7, 7], prefix=1, has_map=False,
    start=0.0, map='ok', variants={'object/single': 'ok', 'object/none': 'ok', 'random/multi': 'ok'}, seconds=0.52,
    kept=0.041, unused=[], hidden=1e-7, peak=2.1, versions=VERSIONS,
    export=dict(open_clip='ok', hf='ok', mmpretrain='refused: no', torch='ok'),
)  # fmt: skip

UNTRIED = {key: RECORD[key] for key in ('name', 'names', 'batch', 'parameters', 'gflop', 'image_size', 'memory')}


def record(**changes):
    return {**RECORD, **changes}


def rows(page, title):
    text = page.split(f'## {title}\n')[1].split('\n## ')[0]
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')
    ][2:]


def test_every_tower_has_a_family():
    found = {find_family(name) for names in list_towers() for name in names}
    assert found == {title for title, _ in FAMILIES}
    assert find_family('nllb-clip-base-siglip') == find_family('ViT-B-16-SigLIP2') == 'SigLIP, SigLIP 2'
    assert find_family('ViT-L-14-CLIPA') == 'CLIPA' and find_family('xlm-roberta-base-ViT-B-32') == 'CLIP ViT'


def test_rows():
    resnet = record(
        name='RN50', names=['RN50'], gflop=12.0, has_map=True, pooling='attention pool', hidden='refused: no tokens',
        variants={'object/single': 'ok', 'object/none': 'refused: no tokens', 'random/multi': 'failed: Oops'},
        image_size=[224, 112],
    )  # fmt: skip
    giant = dict(UNTRIED, name='RN99', names=['RN99', 'RN99-quickgelu'], skipped='is large: 99 GB')
    page = make_page([RECORD, resnet, giant])
    assert rows(page, 'Families') == [
        ['CLIP ResNet', '3', '1 of 2', 'attention pool', 'no', 'no'],
        ['CLIP ViT', '2', '1 of 1', 'class token', 'yes', rows(page, 'Families')[1][5]],
    ]
    assert rows(page, 'Towers') == [
        ['CLIP ResNet', '`RN50`', '87.8', '224×112', '12', 'attention pool 7×7', '1 of 2', 'no', 'o h t', '1.8 + 0.041']
        + ['0.52'],
        [
            'CLIP ViT',
            '`ViT-B-32`, `roberta-ViT-B-32`',
            '87.8',
            '224',
            '8.8',
            'class token 7×7',
            '3 of 3',
            'yes',
            'o h t',
        ]
        + ['1.8 + 0.041', '0.52'],
    ]
    assert '- `RN50`: random/multi: failed: Oops\n' in page
    assert '- CLIP ResNet, is large: `RN99` (99 GB)\n' in page
    assert 'open_clip 3, device a CPU' in page and all(len(line) < 400 for line in page.splitlines())


def test_a_page_without_problems_says_so():
    page = make_page([RECORD])
    assert 'None of the towers that were run crashed' in page and 'Not run' not in page and 'LoRA' not in page
    assert re.search(r'\| LoRA \|\n', make_page([record(lora='ok')]))


def test_a_tower_that_was_not_built_is_a_row():
    page = make_page([dict(UNTRIED, versions=VERSIONS, built='failed: KeyError: x')])
    assert rows(page, 'Towers')[0][5:] == ['failed', '', '', '', '', '']
    assert '- `ViT-B-32`: built: failed: KeyError: x\n' in page


def test_hiding():
    assert [describe_hiding(value) for value in (0.0, 0.0123, 'refused: x', 'failed: x')] == [
        'yes', '1.2 %', 'no', 'failed'
    ]  # fmt: skip


def test_problems():
    assert list(problems(RECORD)) == []
    bad = record(start=0.3, unused=['a', 'b'], hidden='failed: y', lora='refused: z', map='failed: flat')
    assert list(problems(bad)) == [
        'map: failed: flat',
        'hidden patches: failed: y',
        'lora: refused: z',
        'the distillation starts at 0.3 of the square of the features',
        'no gradient for a, b',
    ]


def test_a_page_of_all_towers_is_short():
    page = make_page([record(name=names[0], names=names) for names in list_towers() if not names[0].startswith('tiny')])
    assert len(page.splitlines()) <= 150


def test_the_page_of_the_documentation_is_made_of_the_results():
    records = read_records(str(ROOT / 'docs' / 'results' / 'towers.jsonl'))
    assert make_page(list(records.values())) == PAGES['docs/towers.md']
    names = [name for record in records.values() for name in record['names']]
    assert sorted(names) == sorted(name for name in open_clip.list_models() if not name.startswith('tiny'))
