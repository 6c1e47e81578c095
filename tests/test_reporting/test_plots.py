import itertools

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from mmcfmask.reporting import id_ood_points, id_ood_scatter

PUBLISHED = {
    'Zero-shot': (68.3, 58.3),
    'FT': (81.3, 53.8),
    'WiSE-FT': (81.7, 63.0),
    'CFMask (object, single)': (82.4, 63.3),
    'R-Adapter': (82.0, 64.8),
    'LP': (79.9, 57.8),
    'FD': (81.9, 62.0),
    'KD': (81.8, 62.6),
    'L2-SP': (81.7, 57.0),
}


def markers(figure):
    """{method: (x, y)} of the markers drawn."""
    containers = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    return {c.get_label(): tuple(float(v[0]) for v in c.lines[0].get_data()) for c in containers}


def labels(figure, methods):
    return {text.get_text(): text for text in figure.axes[0].texts if text.get_text() in methods}


def test_points_of_results():
    results = {
        'ZS': {'test': 80.0, 'v2': 70.0, 'a': 60.0},
        'LP': {'test': 90.0, 'v2': 50.0},
        'FT': [{'test': 90.0, 'v2': 60.0, 'a': 40.0}, {'test': 92.0, 'v2': 62.0, 'a': 44.0}],
    }
    assert id_ood_points(results) == {'ZS': [(80.0, 65.0)], 'FT': [(90.0, 50.0), (92.0, 53.0)]}
    assert id_ood_points(results, shifts=['v2'])['LP'] == [(90.0, 50.0)]


@pytest.mark.parametrize('logit', [False, True])
def test_every_method_is_drawn_where_it_belongs(logit):
    figure = id_ood_scatter(PUBLISHED, logit=logit)
    (axes,) = figure.axes
    drawn = markers(figure)
    assert drawn.keys() == PUBLISHED.keys()
    for method, point in PUBLISHED.items():
        assert drawn[method] == pytest.approx(point)
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in PUBLISHED.values())
    assert sum(x0 <= t <= x1 for t in axes.get_xticks()) >= 3


@pytest.mark.parametrize('logit', [False, True])
def test_y_equals_x_is_drawn_as_far_as_the_axes_of_the_points_show_it(logit):
    (axes,) = id_ood_scatter({'a': (80, 79), 'b': (84, 83)}, logit=logit).axes
    (line,) = [line for line in axes.lines if line.get_label() == 'y = x']
    np.testing.assert_allclose(*line.get_data())
    low, high = (f(lims) for f, lims in zip((max, min), zip(axes.get_xlim(), axes.get_ylim())))
    np.testing.assert_allclose(line.get_xdata()[[0, -1]], (low, high))

    (axes,) = id_ood_scatter({'FT': (94.5, 80.4), 'CFMask': (93.5, 81.6)}, logit=logit).axes  # far from y = x
    assert axes.get_ylim()[1] < 86 and 'y = x' not in [artist.get_label() for artist in axes.lines] + [
        t.get_text() for t in axes.texts
    ]


def test_logit_axes_are_logit_scaled():
    (axes,) = id_ood_scatter(PUBLISHED, logit=True).axes
    pixels = axes.transData.transform([(60, 60), (70, 70), (80, 80)])
    steps = np.diff(pixels, axis=0)
    logit = np.log(np.array([0.6, 0.7, 0.8]) / np.array([0.4, 0.3, 0.2]))
    np.testing.assert_allclose(steps[1] / steps[0], np.diff(logit)[1] / np.diff(logit)[0])


def test_seeds_give_error_bars():
    figure = id_ood_scatter({'ZS': (80, 65), 'FT': [(90, 50), (92, 53), (94, 56)]})
    assert markers(figure)['FT'] == pytest.approx((92, 53))
    containers = {c.get_label(): c for c in figure.axes[0].containers}
    assert not containers['ZS'].has_xerr and containers['FT'].has_xerr and containers['FT'].has_yerr
    horizontal, vertical = (bars.get_segments()[0] for bars in containers['FT'].lines[2])
    np.testing.assert_allclose(horizontal, [(90, 53), (94, 53)])  # the sample standard deviation is 2
    np.testing.assert_allclose(vertical, [(92, 50), (92, 56)])  # and 3


@pytest.mark.parametrize('points', [PUBLISHED, {f'method {i}': (80 + i % 4, 60 + i // 4) for i in range(12)}])
def test_names_overlap_neither_each_other_nor_points_nor_the_frame(points):
    figure = id_ood_scatter(points)
    (axes,) = figure.axes
    boxes = {name: text.get_window_extent() for name, text in labels(figure, points).items()}
    assert set(boxes) == set(points)
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (a, b)
    for name, box in boxes.items():
        assert not any(box.contains(*axes.transData.transform(point)) for point in points.values()), name
        frame = figure.bbox
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, name


SEEDS = {
    'Zero-shot': (93, 86.25),
    'FT': [(91, 85), (92, 82.75)],
    'CFMask context': [(90, 84.5), (96, 85.25)],
    'FT + WiSE-FT': [(93, 86), (94, 86)],
    'FT + gate': [(95, 86.25), (96, 87.75)],
    'FT soup': (94, 84.75),
}


def test_names_hide_no_single_run_and_are_nearest_to_their_own_marker():
    figure = id_ood_scatter(SEEDS, size=(3.4, 2.9))
    figure.canvas.draw()  # the white behind the names gets its place
    (axes,) = figure.axes
    named = labels(figure, SEEDS)
    assert set(named) == set(SEEDS)
    with_line = {tuple(text.xy) for text in axes.texts if text.arrow_patch is not None}
    centres = {method: axes.transData.transform(point) for method, point in markers(figure).items()}
    for method, text in named.items():
        box = text.get_bbox_patch().get_window_extent()
        for pairs in SEEDS.values():
            assert not any(box.contains(*pixel) for pixel in axes.transData.transform(np.atleast_2d(pairs))), method
        box = text.get_window_extent()
        away = {m: np.hypot(*np.maximum(np.maximum(box.min - xy, xy - box.max), 0)) for m, xy in centres.items()}
        assert min(away, key=away.get) == method or markers(figure)[method] in with_line, method


def test_colour_and_marker_tell_methods_apart():
    figure = id_ood_scatter({f'm{i}': (50 + i, 40 + i) for i in range(12)})
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in figure.axes[0].containers}
    assert len(looks) == 12


@pytest.mark.parametrize('points', [{'a': (100, 0)}, {'a': (100, 100)}, {'a': (50, 50), 'b': (50, 50)}])
@pytest.mark.parametrize('logit', [False, True])
def test_extreme_values_are_drawn(points, logit):
    figure = id_ood_scatter(points, logit=logit)
    figure.canvas.draw()
    assert set(markers(figure)) == set(points)


@pytest.mark.parametrize(
    'points, message',
    [({}, 'empty'), ({'FT': (81, 120)}, "'FT'"), ({'FT': (1, 2, 3)}, "'FT'"), ({'FT': [(1, float('nan'))]}, "'FT'")],
)
def test_bad_points(points, message):
    with pytest.raises(ValueError, match=message):
        id_ood_scatter(points)


def reference(points=30):
    rng = np.random.default_rng(0)
    acc_id = rng.uniform(60, 85, points)
    return np.stack([acc_id, acc_id - 25 + rng.normal(0, 1, points)], axis=1)


def test_line_and_reference_models_are_drawn():
    figure = id_ood_scatter(
        PUBLISHED, logit=True, line=lambda x: np.asarray(x) - 25, reference=reference(), line_label='ImageNet models'
    )
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_label() == 'ImageNet models')
    x, y = line.get_data()
    np.testing.assert_allclose(y, x - 25)
    lowest, highest = (f(p[0] for p in PUBLISHED.values()) for f in (min, max))
    assert x.min() < lowest and x.max() > highest  # in view over all points
    dots = max(axes.collections, key=lambda c: len(c.get_offsets()))
    np.testing.assert_allclose(dots.get_offsets(), reference())
    label = next(text for text in axes.texts if text.get_text() == 'ImageNet models')
    box = label.get_window_extent()
    assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1


def test_a_far_diagonal_does_not_stretch_the_axes_of_a_line():
    figure = id_ood_scatter({'FT': (80, 20)}, logit=True, line=lambda x: np.asarray(x) - 62)
    (axes,) = figure.axes
    assert axes.get_ylim()[1] < 50 and all(line.get_label() != 'y = x' for line in axes.lines)


def test_the_labels_of_the_lines_touch_no_name():
    figure = id_ood_scatter(PUBLISHED, logit=True, line=lambda x: np.asarray(x) - 15, reference=reference())
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts if text.get_text()}
    assert {'reference models', *PUBLISHED} <= set(boxes)
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (a, b)


CROWD = {
    f'variants_{a}_{b}_vitb16 $x_1$': [(82 + i / 9, 63 + i / 7), (82 + i / 7, 63 + i / 9)]
    for i, (a, b) in enumerate(itertools.product(('object', 'context', 'random'), ('none', 'single', 'multi')))
}


@pytest.mark.parametrize('points', [CROWD, {'a name that is ' + 'very ' * 12 + 'long': (80, 60)}])
def test_names_without_room_go_into_a_legend(points):
    figure = id_ood_scatter(points, logit=True)
    figure.canvas.draw()
    (axes,) = figure.axes
    (legend,) = figure.legends
    texts = legend.get_texts()
    assert [text.get_text().replace('\n', ' ') for text in texts] == list(points) and not labels(figure, points)
    boxes = [text.get_window_extent() for text in texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0 for box in boxes)
    assert max(box.y1 for box in boxes) < axes.get_tightbbox().y0  # under the axes, whose size stays
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert figure.get_size_inches()[0] == pytest.approx(3.3) and figure.get_size_inches()[1] > 2.8
    assert axes.bbox.height / figure.dpi == pytest.approx(2.8 - 0.48)


@pytest.mark.parametrize('low, high', [(97.7, 98.6), (50.1, 50.9), (1, 99), (20, 70), (99.0, 99.9)])
def test_logit_axes_have_ticks_at_any_zoom(low, high):
    (axes,) = id_ood_scatter({'a': (low, low), 'b': (high, high)}, logit=True).axes
    for ticks, limits in ((axes.get_xticks(), axes.get_xlim()), (axes.get_yticks(), axes.get_ylim())):
        assert 4 <= sum(limits[0] <= t <= limits[1] for t in ticks) <= 14
