import json

import numpy as np
import pytest
from PIL import Image
from scripts import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark_data')


def test_every_way_is_timed_and_compared(tool, tmp_path):
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'b.JPEG', 'c.png'):
        small = Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8))
        small.resize((1920, 1440), Image.Resampling.BICUBIC).save(tmp_path / name)
    result = tool.main([str(tmp_path), '--rounds', '1', '--out', str(tmp_path / 'out' / 'data.json')])
    assert json.loads((tmp_path / 'out' / 'data.json').read_text())['images'] == 3
    for name in ('the configs (Pillow)', 'LoadResizedImage', 'CachedDataset, 2nd epoch'):
        assert result[name]['max_difference'] == 0, name
    assert result['mmpretrain (OpenCV)']['mean_difference'] > 0
    assert 0 < result['reducing_gap=2']['mean_difference'] < result['reducing_gap=1']['mean_difference'] < 5
    assert all(row['images_per_second'] > 0 and row['ratio'] > 0 for row in result.values())


def test_folder_without_images(tool, tmp_path):
    with pytest.raises(SystemExit, match='no images'):
        tool.main([str(tmp_path)])
