"""The report page in a browser: what a reader clicks."""

import re
from pathlib import Path

import numpy as np
import pytest
from page_runs import METHODS, write_page_runs
from PIL import Image

from mmcfmask.files import write_text
from mmcfmask.reporting.class_change import compare_classes
from mmcfmask.reporting.comparison import comparison_grid
from mmcfmask.reporting.contents import gather_contents
from mmcfmask.reporting.web import render_page

ROOT = Path(__file__).parents[2]
ZERO_SHOT, FT, ODD = METHODS


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    return gather_contents([str(write_page_runs(tmp_path_factory.mktemp('runs')))])


@pytest.fixture(scope='module')
def path(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'index.html'
    write_text(path, render_page(contents, examples=12))
    return path


@pytest.fixture
def page(open_page, path):
    return open_page(path)


def rows(page, table):
    """Texts of the shown rows of a table."""
    return page.eval_on_selector_all(
        f'{table} tbody tr',
        'rows => rows.filter(row => row.offsetParent).map(row => [...row.cells].map(cell => cell.textContent.trim()))',
    )


def traces(page, chart):
    """{name: visible} of the traces of a chart that are in its legend."""
    script = 'chart => chart.data.filter(t => t.showlegend !== false).map(t => [t.legendgroup, t.visible ?? true])'
    return dict(page.eval_on_selector(f'#{chart}', script))


def test_all_charts_are_drawn(page):
    for chart in ('scatter', 'robustness', 'groups', 'class', 'reliability'):
        page.wait_for_selector(f'#{chart}-chart .main-svg')
        assert page.get_attribute(f'#{chart}-chart', 'aria-label')
    picture = page.locator('#counterfactuals img')
    picture.scroll_into_view_if_needed()
    assert picture.evaluate('image => image.decode().then(() => image.naturalWidth)') == 200
    assert set(METHODS) <= set(traces(page, 'scatter-chart'))


def test_sort(page):
    first = '#metric-1 table'
    assert [row[0] for row in rows(page, first)] == list(METHODS)
    page.click(f'{first} th:has-text("imagenet-a") button')
    assert [row[0] for row in rows(page, first)] == [ZERO_SHOT, ODD, FT]
    assert page.get_attribute(f'{first} th:has-text("imagenet-a")', 'aria-sort') == 'descending'
    page.click(f'{first} th:has-text("imagenet-a") button')
    assert [row[0] for row in rows(page, first)] == [FT, ODD, ZERO_SHOT]
    page.focus(f'{first} th:has-text("Method") button')
    page.keyboard.press('Enter')
    assert [row[0] for row in rows(page, first)] == [ODD, FT, ZERO_SHOT]


def test_metric(page):
    page.select_option('#metric', label='Expected calibration error (percent; lower is better)')
    assert page.is_visible('table:has-text("Expected calibration error")') and not page.is_visible('#metric-1')


def test_a_method_is_hidden_everywhere(page):
    page.click(f'button.method:has-text("{FT}")')
    assert page.get_attribute(f'button.method:has-text("{FT}")', 'aria-pressed') == 'false'
    assert [row[0] for row in rows(page, '#metric-1 table')] == [ZERO_SHOT, ODD]
    for chart in ('scatter', 'robustness', 'groups', 'reliability'):
        found = traces(page, f'{chart}-chart')
        assert found[FT] == 'legendonly' and found[ODD] is True, chart
    assert not page.is_visible(f'#runs summary:has-text("{FT}, seed 0")')
    page.click('#all')
    assert traces(page, 'scatter-chart')[FT] is True and len(rows(page, '#metric-1 table')) == 3


def test_filter(page):
    page.fill('#filter', 'zero')
    assert [row[0] for row in rows(page, '#metric-1 table')] == [ZERO_SHOT]
    page.fill('#filter', '')
    assert len(rows(page, '#metric-1 table')) == 3


def test_legend(page):
    """A click on a name in a chart is a click on the button of the method."""
    page.locator('#scatter-chart .legend .traces', has_text=FT).locator('.legendtoggle').click(force=True)
    page.wait_for_selector('button.method[aria-pressed="false"]')
    assert page.get_attribute(f'button.method:has-text("{FT}")', 'aria-pressed') == 'false'
    assert traces(page, 'groups-chart')[FT] == 'legendonly'


def test_hover(page):
    page.select_option('#scatter-column', 'imagenet-r')
    page.locator('#scatter-chart').scroll_into_view_if_needed()
    place = page.eval_on_selector(
        '#scatter-chart',
        """(chart, name) => {
            const trace = chart.data.find(t => t.legendgroup === name && t.name), {xaxis, yaxis} = chart._fullLayout;
            const box = chart.querySelector('.nsewdrag').getBoundingClientRect();
            return [box.x + xaxis.d2p(trace.x[0]), box.y + yaxis.d2p(trace.y[0])];
        }""",
        ODD,
    )
    page.mouse.move(*place)
    page.wait_for_selector('#scatter-chart .hoverlayer text')
    text = page.locator('#scatter-chart .hoverlayer').text_content()
    assert text.startswith(ODD) and 'ImageNet: 80.2 ± 0.4' in text and 'ImageNet-R: 72.5 ± 0.7' in text


def test_wise_ft_curve(page):
    curve = page.eval_on_selector(
        '#scatter-chart', 'chart => chart.data.filter(t => t.text?.[0]?.includes("α")).map(t => t.text)'
    )
    assert len(curve) == 1 and len(curve[0]) == 5 and 'FT</b>, α = 0.25<br>' in curve[0][1]


def test_two_methods(page, contents):
    """The table and the changes are those of the Markdown report, in both directions."""
    for before, after in ((FT, ODD), (ODD, ZERO_SHOT)):
        page.select_option('#before', label=before)
        page.select_option('#after', label=after)
        page.select_option('#class-set', 'imagenet-r')
        grid = comparison_grid(contents.compare_pair(before, after), before, after)
        names = {'imagenet': 'ImageNet', 'imagenet-r': 'ImageNet-R', 'imagenet-a': 'ImageNet-A'}
        shown = rows(page, '#pair-table')
        assert [row[0] for row in shown] == [names.get(row[0], row[0]) for row in grid.rows]
        assert [row[1:] for row in shown] == [row[1:] for row in grid.rows]
        changes = compare_classes(contents.methods, before, after)['imagenet-r']
        assert {row[0]: float(row[4]) for row in rows(page, '#class-table')} == {
            c.name: pytest.approx(c.change, abs=0.06) for c in changes
        }


def test_images_whose_predictions_changed(page):
    page.select_option('#before', label=FT)
    page.select_option('#after', label=ODD)
    for kind, marks in (('lost', '✓✗'), ('gained', '✗✓')):
        page.select_option('#kind', kind)
        items = page.locator('#examples li').all_inner_texts()
        assert items and all(''.join(re.findall('[✓✗]', item)) == marks for item in items)
    picture = page.locator('#examples img').first
    assert picture.evaluate('image => image.complete && image.naturalWidth') == 112
    label = picture.get_attribute('alt').split(':')[0]
    page.click(f'#class-table button:has-text("{label}")')
    alts = page.eval_on_selector_all('#examples img', 'images => images.map(image => image.alt)')
    assert alts and {alt.split(':')[0] for alt in alts} == {label}


def test_every_control_has_a_name(page):
    nameless = page.eval_on_selector_all(
        'button, select, input, img, [role=region], figure .chart',
        """parts => parts.filter(part => part.offsetParent && !(
            part.labels?.length || part.alt || part.getAttribute('aria-label') ||
            part.tagName === 'BUTTON' && part.textContent.trim()
        )).map(part => part.outerHTML)""",
    )
    assert nameless == []
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'


@pytest.mark.parametrize('width, scheme', [(390, 'light'), (390, 'dark'), (1280, 'dark')])
def test_sizes_and_themes(open_page, path, width, scheme):
    page = open_page(path, width=width, scheme=scheme)
    page.wait_for_selector('#reliability-chart .main-svg')
    wide, view = page.evaluate('[document.documentElement.scrollWidth, document.documentElement.clientWidth]')
    assert wide <= view  # tables scroll by themselves
    dark = scheme == 'dark'
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == (
        'rgb(21, 24, 28)' if dark else 'rgb(255, 255, 255)'
    )
    color = page.eval_on_selector('#scatter-chart', 'chart => chart.layout.font.color')
    page.click('#theme')
    assert page.eval_on_selector('#scatter-chart', 'chart => chart.layout.font.color') != color


def test_screenshot(open_page, screenshots, tmp_path):
    """The page of the committed runs of the built-in benchmark, for docs/report.md."""
    runs = ROOT / 'docs' / 'results' / 'runs' / 'shapes' / 'shapes'
    names = ['Zero-shot', 'FT', 'FD', 'CFMask object/single', 'CFMask+']
    shifts = ['v2', 'r', 'sketch', 'a']
    write_text(tmp_path / 'index.html', render_page(gather_contents([str(runs)], shifts, methods=names)))
    page = open_page(tmp_path / 'index.html', width=1100, height=1090)
    page.wait_for_selector('#scatter-chart .main-svg')
    page.wait_for_timeout(500)  # the layout settles
    file = screenshots / 'report_page.png'
    page.screenshot(path=file)
    assert file.stat().st_size < 300_000
    pixels = np.asarray(Image.open(file).convert('RGB')).reshape(-1, 3)
    found = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    for method in page.evaluate('report.methods.map(method => method.color)'):
        assert tuple(int(method[i : i + 2], 16) for i in (1, 3, 5)) in found, method
