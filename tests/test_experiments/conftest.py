from pathlib import Path

import pytest

from mmcfmask.experiments.spec import StudySpec, parse
from mmcfmask.experiments.study import Study

SHAPES = {'shapes': str(Path(__file__).parents[2] / 'configs' / 'shapes' / '{config}.py')}


@pytest.fixture
def study(tmp_path):
    """Makes a study of methods on the built-in benchmark, without pictures, in tmp_path."""

    def study(methods, only=None, overrides=None, **settings):
        values = {'out': str(tmp_path), 'datasets': SHAPES, 'pictures': False, 'methods': methods, **settings}
        return Study(parse(StudySpec, values), overrides, only)

    return study


@pytest.fixture
def labels():
    return lambda study: [job.label for job in study.jobs]
