"""Copies of a study's results that can be published: small files that tell nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..engine.provenance import hide_machine
from ..errors import ConfigError
from ..files import write_json
from .jobs import Job


def export_results(jobs: Iterable[Job], out: Path, folder: Path) -> list[Path]:
    """Copy the results of finished jobs, every metrics.json and trial.json, to the same places below ``folder``.

    A copy of ``folder`` as the output folder of the same study, on any machine, counts as these finished jobs: the
    files hold the keys. Paths in them are relative to ``out``, or shortened to their last part.

    Args:
        jobs: Of a study.
        out: Its output folder.
        folder: Where to write.

    Returns:
        list[Path]: The files.

    Raises:
        ConfigError: ``folder`` is the output folder itself, or nothing is finished.
        StorageError: A file cannot be written.
    """
    if folder.resolve() == out.resolve():
        raise ConfigError(f'--export: {folder} is the folder of the study itself: choose another')
    written = []
    for job in jobs:
        if job.product.suffix == '.json' and job.is_finished():
            content = json.loads(job.product.read_text(encoding='utf-8'))
            content['key'] = job.read_key()  # a run of an earlier version of this file holds none
            path = folder / job.product.relative_to(out)
            write_json(path, hide_machine(content, out), indent=1)
            written.append(path)
    if not written:
        raise ConfigError(f'--export: no run of the study is finished in {out}')
    return written
