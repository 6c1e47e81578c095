"""The report page as text; tests/test_browser drives it in a browser."""

import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from statistics import mean

import numpy as np
import pytest
from page_runs import METHODS, write_page_runs
from synthetic_runs import write_run

from mmcfmask.reporting.contents import gather_contents
from mmcfmask.reporting.tables import summary_markdown
from mmcfmask.reporting.web import render_page
from mmcfmask.reporting.web.data import page_data
from mmcfmask.reporting.web.render import FOLDER, script_json

ODD = list(METHODS)[2]
# Of plotly.js-basic-dist-min 4.1.1 in the npm registry.
PLOTLY = '99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba'


class Page(HTMLParser):
    """Tables by caption, as lists of rows of texts; tags; and the texts of definitions (dt: dd)."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.facts, self.titles = {}, [], [], {}
        self.text = self.caption = self.row = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ('caption', 'th', 'td', 'dt', 'dd'):
            self.text = ''
            self.title = dict(attrs).get('title')
        if tag == 'tr':
            self.row = []

    def handle_data(self, data):
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag == 'caption':
            self.caption, self.tables[self.text] = self.text, []
        if tag in ('th', 'td'):
            self.row.append(self.text.strip())
            if self.title:
                self.titles[self.row[0], len(self.row) - 1] = self.title
        if tag == 'tr':
            self.tables[self.caption].append(self.row)
        if tag in ('dt', 'dd'):
            self.facts.append(self.text)
        if tag in ('caption', 'th', 'td', 'dt', 'dd'):
            self.text = None


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    return gather_contents([str(write_page_runs(tmp_path_factory.mktemp('runs')))])


@pytest.fixture(scope='module')
def text(contents):
    return render_page(contents, examples=4)


@pytest.fixture(scope='module')
def page(text):
    return Page(text)


@pytest.fixture(scope='module')
def data(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_tables_are_those_of_the_markdown_report(contents, page):
    for summary in (contents.accuracy, *contents.others, contents.robustness):
        lines = [line for line in summary_markdown(summary).splitlines() if line.startswith('|')]
        expected = [[c.strip().replace('**', '') for c in line.strip('|').split(' | ')] for line in lines]
        (caption,) = (c for c in page.tables if c.startswith(summary.metric.label))
        assert page.tables[caption] == [expected[0], *expected[2:]]
    assert page.tables['Accuracy in the groups of groups (%)'][0] == ['Method', 'own', 'other']


def test_daggers_say_why(page):
    (caption,) = (c for c in page.tables if c.startswith('Top-1'))
    header, *rows = page.tables[caption]
    column = header.index('imagenet-r')
    assert all(row[column].endswith('†') for row in rows)
    assert page.titles['FT', column] == 'incomplete: 200 of 30,000 images'


def test_the_page_needs_nothing_else(text, page):
    """No file, no server: a policy forbids all requests, and no tag makes one."""
    without_pictures = re.sub(r'data:image/jpeg;base64,[\w+/=]+', '', text)
    assert len(without_pictures.encode()) < 2e6 < 5e6
    for tag, attrs in page.tags:
        address = attrs.get('src') or (attrs.get('href') if tag != 'a' else None) or ''
        assert address.startswith('data:') or not address, (tag, address[:80])
        assert tag != 'a' or attrs['href'].startswith('#')
    policy = next(attrs['content'] for tag, attrs in page.tags if attrs.get('http-equiv'))
    assert policy.startswith("default-src 'none'; img-src data: blob:;")


def test_every_run_has_its_provenance(page, contents):
    for name, value in (
        ('Command', 'mmcfmask test configs/1.py --out metrics.json'),
        ('SHA-256', '0123456789abcdef' * 4),
        ('Config', 'configs/FT.py'),
        ('Versions', 'mmcfmask 0.1.0, torch 2.15.0'),
        ('optim_wrapper.optimizer.lr', '1e-05'),
    ):
        assert (name, value) in zip(page.facts, page.facts[1:]), name
    assert page.facts.count('Command') == len(contents.runs) == 5
    assert any(fact.startswith('imagenet: 200 images, Resize(224) → CenterCrop(224);') for fact in page.facts)


def test_names_are_no_html(text, page):
    assert '<b>bold</b>' not in text.split('<script')[0] and '<b>bold' not in text
    assert ODD in {row[0] for rows in page.tables.values() for row in rows}
    encoded = script_json(['</script><!--', '&'])
    assert '<' not in encoded and json.loads(encoded) == ['</script><!--', '&']


def test_data_of_the_charts(contents, data):
    assert [method['name'] for method in data['methods']] == list(METHODS)
    assert [method['color'] for method in data['methods']] == [look.color for look in contents.looks.values()]
    assert list(data['scatter']) == ['OOD avg', 'imagenet-r', 'imagenet-a']
    assert data['scatter']['imagenet-r']['points']['1'] == dict(
        runs=[[81.0, 65.0], [82.0, 66.0]], x=[81.5, 0.707, '81.5 ± 0.7'], y=[65.5, 0.707, '65.5 ± 0.7']
    )
    assert data['scatter']['imagenet-r']['curves']['1'][-1] == [1.0, 81.5, 65.5]
    assert len(data['scatter']['imagenet-r']['reference']) == 80 and data['names']['imagenet-r'] == 'ImageNet-R'
    for x, y in data['scatter']['imagenet-r']['line'][::20]:
        assert y == pytest.approx(float(contents.lines.lines['imagenet-r'][0].predict(x)), abs=1e-3)
    assert data['robustness']['OOD avg']['0'][0] == pytest.approx(
        contents.robustness.rows['Zero-shot']['OOD avg'].mean, abs=1e-3
    )
    assert data['groups']['groups']['2']['runs'] == [[82.0, 22.0], [83.0, 23.0]]
    bins = data['reliability']['imagenet']['0']
    assert sum(count for _, _, count in bins) == 2000 and all(0 <= value <= 1 for b in bins for value in b[:2])


def test_classes_and_pairs(contents, data):
    classes = data['classes']['imagenet']
    runs = contents.methods['FT']
    expected = mean(run.sets['imagenet']['per_class']['star'] for run in runs)
    assert classes['accuracy']['1'][classes['names'].index('star')] == pytest.approx(expected, abs=1e-3)
    assert classes['counts'] == [20] * 10 and list(data['pairs']) == ['0-1', '0-2', '1-2']
    row = {row.column: row for row in contents.compare_pair('FT', ODD)}['imagenet']
    *numbers, text, interval = data['pairs']['1-2']['imagenet']
    assert numbers == pytest.approx([row.difference.mean, *row.interval, row.images], abs=1e-3)
    assert text == row.difference.text(signed=True) and interval == f'{row.interval[0]:+.1f} to {row.interval[1]:+.1f}'
    assert data['seeds'] == {'0': None, '1': 0, '2': 0}


def test_runs_of_one_set(tmp_path):
    """Without shifts, predictions, groups or a second method there is a page too."""
    write_run(tmp_path / 'metrics.json', {'test': 90.0})
    contents = gather_contents([str(tmp_path)])
    text = render_page(contents)
    for absent in ('id="scatter"', 'id="robustness"', 'id="groups"', 'id="compare"', 'id="counterfactuals"'):
        assert absent not in text
    data = page_data(contents, {})
    assert data['scatter'] == {} and data['pairs'] == {} and data['reliability']['test']


def test_the_bundle_is_the_published_one():
    content = gzip.decompress((FOLDER / 'plotly-basic.min.js.gz').read_bytes())
    assert hashlib.sha256(content).hexdigest() == PLOTLY and b'</script' not in content
    assert (FOLDER / 'plotly-basic.min.js.gz').stat().st_size < 400_000
    assert 'MIT License' in (FOLDER / 'plotly-basic.LICENSE.txt').read_text()


def luminance(color):
    """Relative luminance of WCAG 2."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize('theme', [':root {', ":root[data-theme='dark'] {"])
def test_contrast_of_texts(theme):
    block = (FOLDER / 'page.css').read_text().split(theme)[1].split('}')[0]
    colors = dict(re.findall(r'--(\w+): (#\w{6})', block))
    for text in ('text', 'soft', 'link', 'good', 'bad'):
        for back in ('back', 'raised', 'mark'):
            bright, dark = sorted((luminance(colors[text]), luminance(colors[back])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, back)
    bright, dark = sorted((luminance(colors['text']), luminance(colors['warn'])), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5
