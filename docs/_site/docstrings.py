"""Docstrings are written for ``help()`` and editors, with Sphinx roles. The site is Markdown."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r':(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`')
SHARED = re.compile(r'^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+)((?: \([^\n]*?\))?: .*(?:\n\1 +.*)*)', re.MULTILINE)
INHERITED = re.compile(r'^( +)\*\*kwargs: .*(?:\n\1 +.*)*\n?', re.MULTILINE)
TABLE = re.compile(r'^( *)=+  =+\n(.*?)\n\1=+  =+$', re.MULTILINE | re.DOTALL)


def make_list(table: re.Match) -> str:
    """The rows of a table as a list."""
    rows = re.sub(r'\n {10,}', ' ', table[2]).splitlines()
    return '\n'.join(re.sub(r'^ *(\S.*?)  +', rf'{table[1]}- \1: ', row) for row in rows)


class PlainMarkdown(griffe.Extension):
    """Turn roles into code, ``::`` into ``:``, tables into lists, and a line of several arguments into one for each."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if not obj.docstring:
            return
        text = ROLE.sub(r'`\1`', obj.docstring.value)
        text = TABLE.sub(make_list, re.sub(r'::$', ':', text, flags=re.MULTILINE))
        text = SHARED.sub(lambda match: '\n'.join(f'{match[1]}{name}{match[3]}' for name in match[2].split(', ')), text)
        if obj.is_class and '__init__' not in obj.members:  # the site shows the base class, and no signature
            text = INHERITED.sub('', text)
        obj.docstring.value = text
