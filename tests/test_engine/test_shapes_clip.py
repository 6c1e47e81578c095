"""Pretraining of the small CLIP."""

import pytest

from mmcfmask.engine import shapes_clip
from mmcfmask.engine.shapes_clip import Settings, pretrain
from mmcfmask.errors import StorageError


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_clip, 'read_pretraining_data', None)  # it would render first
    (tmp_path / 'file').touch()
    for work_dir, out, message in [
        (tmp_path, '/proc/nowhere/weights.safetensors', "cannot write to the folder '/proc/nowhere'.* with --out"),
        (tmp_path, tmp_path, 'is a folder: give the name of a file'),
        (tmp_path / 'file', tmp_path / 'weights.safetensors', 'cannot write to the work dir .* with --work-dir'),
    ]:
        with pytest.raises(StorageError, match=message):
            pretrain(Settings(), work_dir, out)
