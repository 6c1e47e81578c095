"""How long the finished jobs of a study took, kept in its folder for estimates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Durations = list[tuple[tuple[str, ...], float]]
"""(group of a job, seconds)"""

FILE = 'durations.jsonl'


def read_durations(out: Path) -> Durations:
    """(group, seconds) of the jobs that were finished in a folder, without a break; what is damaged is left out."""
    path = out / FILE
    found: Durations = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            found.append((tuple(map(str, entry['group'])), float(entry['seconds'])))
        except (ValueError, KeyError, TypeError):  # cut off by a full disk
            continue
    return found


def add_duration(out: Path, group: Sequence[str], seconds: float) -> None:
    """Note how long a job took, for :func:`read_durations`."""
    with (out / FILE).open('a', encoding='utf-8') as file:
        file.write(json.dumps(dict(group=group, seconds=round(seconds, 1))) + '\n')
