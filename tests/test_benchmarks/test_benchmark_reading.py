import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmcfmask.benchmarks.reading import benchmark_reading, show_reading
from mmcfmask.errors import MissingFileError


def test_every_way_is_timed_and_compared(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'b.JPEG', 'c.png'):
        small = Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8))
        small.resize((1920, 1440), Image.Resampling.BICUBIC).save(tmp_path / name)
    result = benchmark_reading(str(tmp_path), rounds=1)
    assert (result['images'], result['width'], result['height']) == (3, 1920, 1440)
    ways = result['ways']
    for name in ('the configs (Pillow)', 'LoadResizedImage', 'CachedDataset, 2nd epoch'):
        assert ways[name]['max_difference'] == 0, name
    assert ways['mmpretrain (OpenCV)']['mean_difference'] > 0
    assert 0 < ways['reducing_gap=2']['mean_difference'] < ways['reducing_gap=1']['mean_difference'] < 5
    assert all(row['images_per_second'] > 0 and row['ratio'] > 0 for row in ways.values())
    show_reading(result, Console(width=120))
    assert '3 images, median size 1920 x 1440' in capsys.readouterr().out


def test_folder_without_images(tmp_path):
    with pytest.raises(MissingFileError, match='no images'):
        benchmark_reading(str(tmp_path))
