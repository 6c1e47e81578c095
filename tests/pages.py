"""The pages of the documentation, for tests that read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
    for path in [*ROOT.glob('*.md'), *sorted((ROOT / 'docs').rglob('*.md'))]
}
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^    .*\n?)+', re.MULTILINE)


def prose(name: str) -> str:
    """A page without its blocks of code."""
    return FENCED.sub('', PAGES[name])


def blocks(name: str, language: str) -> list[str]:
    return [code for kind, code in FENCED.findall(PAGES[name]) if kind == language]


def table(name: str, header: str) -> list[list[str]]:
    """The rows of the first table of a page whose header starts so, without emphasis and code marks."""
    lines = PAGES[name].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            return rows
        rows.append([cell.strip().strip('*') for cell in line.strip('|').split('|')])
    return rows


def number(text: str) -> float:
    return float(text.replace(',', '').replace('−', '-').split()[0])
