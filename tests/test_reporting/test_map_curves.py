import numpy as np
import pytest

from mmcfmask.reporting import map_curves, save_figure


def test_every_map_of_every_set_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    sets = {name: {label: (rng.random(5), rng.random(5)) for label in ('one', 'two')} for name in ('photo', 'sketch')}
    figure = map_curves(sets)
    assert len(figure.axes) == 4
    for row, (name, curves) in enumerate(sets.items()):
        assert name in figure.axes[2 * row].get_ylabel()
        for side in range(2):
            lines = figure.axes[2 * row + side].get_lines()
            assert [line.get_label() for line in lines] == ['one', 'two']
            for line, pair in zip(lines, curves.values()):
                np.testing.assert_allclose(line.get_xdata(), [0, 25, 50, 75, 100])
                np.testing.assert_allclose(line.get_ydata(), pair[side])
    assert save_figure(figure, tmp_path / 'curves.png')[0].stat().st_size > 1000


def test_nothing_to_draw():
    for sets in {}, dict(photo={}):
        with pytest.raises(ValueError, match='no curves'):
            map_curves(sets)
