"""The JSON schema of study files, by which editors complete and check them.

``python -m mmcfmask.experiments.schema`` writes it again after a change of :mod:`.spec`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import json_text, write_text
from .spec import StudySpec

PATH = Path(__file__).with_name('study.schema.json')


def make_schema() -> dict[str, Any]:
    """The JSON schema of a study file, without the titles that pydantic makes of names."""
    schema = {'$schema': 'https://json-schema.org/draft/2020-12/schema', **StudySpec.model_json_schema()}
    for part in [schema, *schema['$defs'].values()]:
        part.pop('title')
        for key in part['properties'].values():
            key.pop('title', None)
    return {**schema, 'title': 'mmcfmask study'}


if __name__ == '__main__':
    write_text(PATH, json_text(make_schema()))
    print(PATH)
