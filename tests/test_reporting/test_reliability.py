import numpy as np
import pytest
from matplotlib.colors import to_hex
from synthetic_runs import reliability

from mmcfmask.reporting.reliability import BLUE, VERMILLION, merge_bins, reliability_diagram

EMPTY = dict(confidence=None, accuracy=None, count=0)
BINS = [EMPTY, dict(confidence=0.4, accuracy=0.3, count=10), EMPTY, dict(confidence=0.7, accuracy=0.9, count=30)]


def bars(axes, color):
    """{x: (bottom, top)} of the bars of a colour."""
    shown = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) == color.lower()]
    return {round(bar.get_x(), 6): (bar.get_y(), bar.get_y() + bar.get_height()) for bar in shown}


def test_bars_reach_accuracy_and_gaps_reach_confidence():
    figure = reliability_diagram({'test': BINS}, {'test': 'ECE 17.5'})
    main, strip = figure.axes
    assert bars(main, '#8c8c8c') == {0.25: (0, pytest.approx(0.3)), 0.75: (0, pytest.approx(0.7))}
    assert bars(main, VERMILLION) == {0.25: (pytest.approx(0.3), pytest.approx(0.4))}  # overconfident
    assert bars(main, BLUE) == {0.75: (pytest.approx(0.7), pytest.approx(0.9))}  # underconfident
    assert [b.get_height() for b in strip.patches] == pytest.approx([0, 0.25, 0, 0.75])
    assert {bar.get_alpha() for bar in main.patches} == {1}
    assert [text.get_text() for text in main.texts] == ['ECE 17.5'] and main.get_title() == 'test'
    assert main.get_xlim() == main.get_ylim() == (0, 1)


def test_bins_of_few_predictions_are_pale():
    bins = [dict(confidence=0.2, accuracy=0.1, count=9), dict(confidence=0.8, accuracy=0.9, count=10)]
    main = reliability_diagram({'test': bins}).axes[0]
    assert {bar.get_x(): bar.get_alpha() for bar in main.patches} == {0: 0.3, 0.5: 1}


@pytest.mark.parametrize('num', [1, 2, 3, 4, 6, 7])
def test_panels_stay_inside_the_column_and_apart(num):
    rng = np.random.default_rng(0)
    figure = reliability_diagram({f'set number {i}': reliability(0.7, rng) for i in range(num)})
    assert figure.get_size_inches()[0] == 3.3
    figure.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes[::2]]
    assert len(boxes) == num
    for i, box in enumerate(boxes):
        assert (
            figure.bbox.x0 <= box.x0
            and box.x1 <= figure.bbox.x1
            and figure.bbox.y0 <= box.y0
            and box.y1 <= figure.bbox.y1
        )
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_bins_of_seeds_are_those_of_all_predictions():
    rng = np.random.default_rng(0)
    runs = [(rng.random(50), rng.random(50) < 0.5) for _ in range(3)]

    def bins(confidence, right):
        where = np.minimum((confidence * 15).astype(int), 14)
        return [
            dict(
                count=int((where == i).sum()),
                confidence=float(confidence[where == i].mean()) if (where == i).any() else None,
                accuracy=float(right[where == i].mean()) if (where == i).any() else None,
            )
            for i in range(15)
        ]

    merged = merge_bins([bins(*run) for run in runs])
    expected = bins(*(np.concatenate(part) for part in zip(*runs)))
    for ours, theirs in zip(merged, expected):
        assert ours == pytest.approx(theirs)
    assert merge_bins([BINS]) == BINS


@pytest.mark.parametrize(
    'sets, message',
    [
        ({}, 'no set'),
        ({'test': [EMPTY] * 15}, "'test': there are no predictions"),
        ({'test': [dict(confidence=40, accuracy=30, count=1)]}, 'fractions in 0..1'),
    ],
)
def test_bad_bins(sets, message):
    with pytest.raises(ValueError, match=message):
        reliability_diagram(sets)
    with pytest.raises(ValueError, match='different numbers of confidence bins: 4, 1'):
        merge_bins([BINS, [EMPTY]])
