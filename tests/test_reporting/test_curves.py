import matplotlib.pyplot as plt
import pytest
from PIL import Image

from mmcfmask.reporting import save_figure, wise_ft_curve

# Of ViT-B/16 about as published (Wortsman et al. 2022): the best OOD average is not at 0.5.
POINTS = {
    0: (68.3, 58.1),
    0.2: (76.0, 62.2),
    0.4: (80.6, 63.3),
    0.5: (81.7, 63.0),
    0.6: (82.2, 62.0),
    0.8: (82.2, 58.9),
    1: (81.3, 53.8),
}


def test_every_alpha_is_a_point_and_the_default_stands_out():
    figure = wise_ft_curve(POINTS)
    (axes,) = figure.axes
    line, star = axes.lines
    assert [tuple(point) for point in line.get_xydata()] == list(POINTS.values())
    assert tuple(star.get_xydata()[0]) == POINTS[0.5] and star.get_marker() == '*'
    assert [text.get_text() for text in axes.texts] == ['α = 0.5', 'α = 0', 'α = 1']
    assert not plt.get_fignums()


def test_labels_lie_inside_and_apart():
    figure = wise_ft_curve(POINTS)
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 + 1
        assert not any(box.overlaps(other) for other in boxes if other is not box)


@pytest.mark.parametrize(
    'points', [POINTS, {0: (94.5, 84.125), 0.5: (96.5, 84.625), 1: (97.5, 83.625)}]
)  # ticks such as 84.75
def test_nothing_is_cut_off(points):
    figure = wise_ft_curve(points)
    box, page = figure.axes[0].get_tightbbox(figure.canvas.get_renderer()), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


def test_few_points(tmp_path):
    assert len(wise_ft_curve({0: (10, 20), 1: (30, 10)}).axes[0].lines) == 1  # without the default no star
    paths = save_figure(wise_ft_curve({0.5: (81.7, 63.0)}), tmp_path / 'one.png', pdf=True)
    assert Image.open(paths[0]).width > 500 and paths[1].stat().st_size > 1000


def test_bad_points():
    with pytest.raises(ValueError, match='no α'):
        wise_ft_curve({})
    with pytest.raises(ValueError, match='0..100'):
        wise_ft_curve({0.5: (0.8, 101)})
