import pytest

from mmcfmask.reporting.few_shot_curves import curve_columns, few_shot_figure, few_shot_markdown
from mmcfmask.reporting.summary import OOD_AVERAGE, summarize

RUNS = {
    1: {
        'FT': [dict(test=40.0, v2=30.0, a=10.0), dict(test=44.0, v2=32.0, a=12.0)],
        'Zero-shot': dict(test=60.0, v2=50.0, a=40.0),
    },
    16: {'FT': [dict(test=80.0, v2=60.0, a=20.0), dict(test=84.0, v2=64.0, a=20.0)]},
}


@pytest.fixture
def summaries():
    return {number: summarize(runs) for number, runs in RUNS.items()}


def test_tables(summaries):
    assert curve_columns(summaries) == ['test', OOD_AVERAGE]
    text = few_shot_markdown(summaries)
    assert '| Method | 1 | 16 |' in text and '| FT | 42.0 ± 2.8 | 82.0 ± 2.8 |' in text
    assert '| Zero-shot | 60.0 | – |' in text and '| FT | 21.0 ± 1.4 | 41.0 ± 1.4 |' in text
    assert text.count('- OOD avg: unweighted mean of v2, a.') == 1


def test_curves(summaries):
    figure = few_shot_figure(summaries)
    left, right = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ['test', OOD_AVERAGE]
    lines = {box.get_label(): box.lines[0].get_xydata().tolist() for box in left.containers}
    assert lines == {'FT': [[1, 42.0], [16, 82.0]], 'Zero-shot': [[1, 60.0]]}
    assert right.containers[0].lines[0].get_ydata().tolist() == [21.0, 41.0]
    figure.draw_without_rendering()
    assert [label.get_text() for label in left.get_xticklabels()] == ['1', '16']
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
