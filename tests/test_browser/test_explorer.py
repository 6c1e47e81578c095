"""The explorer in a browser: what a person does."""

import io
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from mmcfmask.engine.config import load_config
from mmcfmask.explorer.images import Source
from mmcfmask.explorer.session import Explorer
from mmcfmask.reporting.stages import MASK_COLOR

gradio = pytest.importorskip('gradio', reason="gradio is not installed: pip install -e '.[dev]'")

CONFIG = 'configs/shapes/cfmask.py'
SIZE = 200
SMALL = {f'test_dataloader.{name}.dataset.size': SIZE for name in ('test', 'v2', 'r', 'sketch', 'a', 'groups')}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A short fine-tuning."""
    torch.manual_seed(0)
    cfg = load_config('configs/shapes/ft.py', {'train_dataloader.dataset.size': 320})
    model = MODELS.build(cfg.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for start in range(0, 320, 32):
        items = [dataset[index] for index in range(start, start + 32)]
        batch = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp('runs') / 'ft' / 'best.pth'
    path.parent.mkdir()
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def explorer(browser, checkpoint):
    return Explorer(load_config(CONFIG, SMALL), [checkpoint])


@pytest.fixture(scope='module')
def serve():
    """Serves the page of an explorer; fails if the server asks another host for anything."""
    from mmcfmask.explorer.page import launch

    pages, asked, connect, look_up = [], [], socket.socket.connect, socket.getaddrinfo

    def watched_connect(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith('127.'):
            asked.append(address)
        return connect(self, address)

    def watched_look_up(host, *args, **kwargs):
        if host not in ('127.0.0.1', 'localhost', None):
            asked.append(host)
        return look_up(host, *args, **kwargs)

    def serve(explorer):
        page, url = launch(explorer)
        pages.append(page)
        assert url.startswith('http://127.0.0.1:')
        return url

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', watched_connect)
        patch.setattr(socket, 'getaddrinfo', watched_look_up)
        yield serve
        for page in pages:
            page.close(verbose=False)
    assert asked == []


@pytest.fixture(scope='module')
def url(serve, explorer):
    return serve(explorer)


@pytest.fixture(scope='module')
def context(browser):
    context = browser.new_context(viewport=dict(width=1280, height=880))
    yield context
    context.close()


@pytest.fixture
def page(open_page, url, context):
    page = open_page(url, context=context)
    page.wait_for_selector('.stages img')
    yield page
    page.close()


@pytest.fixture
def choice(explorer):
    """What the page begins with."""
    return explorer.default_choice(explorer.pick('test', 1)[0])


def caption(page, title):
    return page.inner_text(f'.stages figure:has(b:text-is("{title}")) span')


def wait_for(page, title, text):
    page.wait_for_selector(f'.stages figure:has(b:text-is("{title}")) span:text-is("{text}")')


def pixels(page, title):
    return page.get_attribute(f'.stages figure:has(b:text-is("{title}")) img', 'src')


def answers(page, tower):
    """[[(class, probability, chosen)] for the image, and for the counterfactual image] of a model."""
    return page.eval_on_selector_all(
        f'.answer[aria-label="{tower}"] table',
        """tables => tables.map(table => [...table.rows].map(
            row => [row.cells[0].textContent, row.cells[2].textContent, row.className == 'chosen']))""",
    )


def check_answers(page, tower, rows):
    """The page may show the pictures a moment before."""
    for _ in range(100):
        if answers(page, tower) != rows:
            page.wait_for_timeout(50)
    assert answers(page, tower) == rows


def expected(explorer, choice):
    """The same by the explorer."""
    found = {}
    for answer in explorer.look(choice).answers:
        found[answer.tower] = []
        for values in answer[1:]:
            top = values.topk(5).indices.tolist()
            shown = top if choice.label in top else [*top, choice.label]
            rows = [[explorer.classes[i], f'{values[i]:.1%}', i == choice.label] for i in shown]
            found[answer.tower].append(rows)
    return found


def thumbnails(page):
    return page.eval_on_selector_all('#gallery img', 'images => images.map(image => image.src)')


def wait_for_others(page, before):
    """The thumbnails once all of them are others than ``before``."""
    script = """before => [...document.querySelectorAll('#gallery img')].every(image => !before.includes(image.src))
        && document.querySelectorAll('#gallery img').length == 12"""
    page.wait_for_function(script, arg=before)
    return thumbnails(page)


def brightness(color):
    """Of a colour of CSS, 0 to 255."""
    return np.mean([float(value) for value in re.findall(r'[\d.]+', color)[:3]])


def share(explorer, choice):
    mask = explorer.look(choice).mask
    return f'{int(mask.sum())} of {mask.numel()} patches ({mask.float().mean().item():.0%})'


def test_start(page, explorer, choice):
    titles = page.locator('.stages b').all_inner_texts()
    assert titles == ['Image', 'Relevance', 'Mask', 'Counterfactual', 'Donor']
    assert caption(page, 'Image') == choice.image.words and caption(page, 'Donor') == choice.donor.words
    assert caption(page, 'Mask') == share(explorer, choice)
    assert caption(page, 'Relevance') == 'published, zero-shot'
    for tower, rows in expected(explorer, choice).items():
        check_answers(page, tower, rows)
    assert page.input_value('#class input') == explorer.classes[choice.label]
    assert page.locator('#gallery img').count() == 12
    sizes = page.eval_on_selector_all('.stages img', 'images => images.map(image => [image.naturalWidth, image.alt])')
    assert all(width == 300 and alt for width, alt in sizes)


def test_pick_image_and_donor(page, explorer, choice):
    shown = explorer.pick('test', 12)
    page.click('#gallery button >> nth=4')
    wait_for(page, 'Image', shown[4].words)
    page.click('#target label:has-text("Donor")')
    page.click('#gallery button >> nth=7')
    wait_for(page, 'Donor', shown[7].words)
    label = explorer.shelf.label(shown[4], 10)
    picked = replace(choice, image=shown[4], donor=shown[7], label=label)
    assert page.input_value('#class input') == explorer.classes[label]
    check_answers(page, 'zero-shot', expected(explorer, picked)['zero-shot'])
    page.click('#gallery button >> nth=4')  # the image as its own donor
    page.wait_for_selector('#message [role=alert]:has-text("the donor is the image itself")')
    page.click('#gallery button >> nth=1')
    wait_for(page, 'Donor', shown[1].words)
    assert page.locator('#message [role=alert]').count() == 0
    before = thumbnails(page)
    page.click('#more')
    before = wait_for_others(page, before)
    page.click('#set input')
    page.click('[role=option]:has-text("sketch")')
    wait_for_others(page, before)
    page.click('#target label:has-text("Image")')
    page.click('#gallery button >> nth=0')
    wait_for(page, 'Image', explorer.pick('sketch', 1)[0].words)


def test_upload(page, explorer, choice, tmp_path):
    Image.fromarray(explorer.shelf.dataset('test').get_data_info(9)['img']).save(tmp_path / 'my_photo.png')
    (tmp_path / 'notes.txt').write_text('no image')
    page.set_input_files('#upload input[type=file]', tmp_path / 'my_photo.png')
    wait_for(page, 'Image', 'my_photo.png')
    file = explorer.with_image(choice, Source(str(tmp_path / 'my_photo.png')))
    check_answers(page, 'zero-shot', expected(explorer, file)['zero-shot'])
    page.click('#upload button[aria-label="Clear"], #upload button[aria-label="Remove this file"]')
    page.set_input_files('#upload input[type=file]', tmp_path / 'notes.txt')
    page.wait_for_selector('#message [role=alert]:has-text("notes.txt cannot be read as an image")')
    assert caption(page, 'Image') == 'my_photo.png'
    page.click('#gallery button >> nth=2')
    wait_for(page, 'Image', explorer.pick('test', 12)[2].words)


def test_class_and_threshold(page, explorer, choice):
    before = pixels(page, 'Relevance')
    page.click('#class input')
    page.click('[role=option]:has-text("ring")')
    ring = replace(choice, label=explorer.classes.index('ring'))
    page.wait_for_selector('.answer .chosen th:text-is("ring")')
    check_answers(page, 'zero-shot', expected(explorer, ring)['zero-shot'])
    assert pixels(page, 'Relevance') != before
    slider = page.locator('#value input[type=range]')
    box = slider.bounding_box()
    page.mouse.move(box['x'] + 0.3 * box['width'], box['y'] + box['height'] / 2)
    page.mouse.down()
    page.mouse.move(box['x'] + 0.72 * box['width'], box['y'] + box['height'] / 2, steps=5)
    page.mouse.up()
    value = float(slider.input_value())
    assert 0.6 < value < 0.85
    wait_for(page, 'Mask', share(explorer, replace(ring, value=value)))
    page.fill('#value input[type=number]', '0.05')
    page.keyboard.press('Enter')
    wait_for(page, 'Mask', share(explorer, replace(ring, value=0.05)))


def test_mask_fill_and_map(page, explorer, choice):
    page.click('#mask label:has-text("context")')
    wait_for(page, 'Counterfactual', 'context, single')
    assert page.input_value('#value input[type=number]') == '0.5'  # the published one
    assert caption(page, 'Mask') == share(explorer, replace(choice, mask='context', value=0.5))
    page.click('#fill label:has-text("multi")')
    wait_for(page, 'Donor', f'{choice.donor.words} and 6 others')
    page.click('#fill label:has-text("none")')
    wait_for(page, 'Hidden from the model', 'context, none')
    assert page.locator('.stages figure').count() == 4
    page.click('#mask label:has-text("random")')
    wait_for(page, 'Mask', '48 of 64 patches (75%)')
    page.wait_for_selector('#value label:has-text("Probability")')
    before = pixels(page, 'Mask')
    page.click('#redraw')
    page.wait_for_function('before => document.querySelectorAll(".stages img")[2].src != before', arg=before)
    page.click('#by label:has-text("Share")')
    wait_for(page, 'Mask', '32 of 64 patches (50%)')
    page.click('#map label:has-text("cleaned")')
    wait_for(page, 'Relevance', 'cleaned, zero-shot')
    page.click('#tower label:has-text("ft/best")')
    wait_for(page, 'Relevance', 'cleaned, ft/best')


def test_alpha(page, explorer, choice):
    assert answers(page, 'ft/best') != answers(page, 'zero-shot')
    for alpha in (0.5, 0):
        page.fill('#alpha input[type=number]', str(alpha))
        page.keyboard.press('Enter')
        page.wait_for_selector(f'.answer[aria-label="ft/best"] .alpha:text-is("α = {alpha}")')
        check_answers(page, 'ft/best', expected(explorer, replace(choice, alpha=alpha))['ft/best'])
    assert answers(page, 'ft/best') == answers(page, 'zero-shot')


def test_save(page, choice, tmp_path):
    with page.expect_download() as download:
        page.click('#save')
    name = f'test_{choice.image.index}_object_single.png'
    assert download.value.suggested_filename == name
    download.value.save_as(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == 'PNG' and picture.width > 900


def test_zero_shot_alone(open_page, serve, context):
    explorer = Explorer(load_config('configs/shapes/zeroshot.py', SMALL))
    page = open_page(serve(explorer), context=context)
    page.wait_for_selector('.stages img')
    assert page.locator('.answer h3').all_inner_texts() == ['zero-shot']
    assert not page.is_visible('#alpha') and not page.is_visible('#tower') and not page.is_visible('#changes')
    assert 'does not train on counterfactual images' in page.inner_text('#title')


@pytest.mark.parametrize('width, scheme', [(390, 'light'), (1280, 'dark')])
def test_sizes_and_themes(open_page, url, width, scheme):
    page = open_page(url, width=width, scheme=scheme)
    page.wait_for_selector('.stages img')
    parts = '.answer, .answer table, .stages figure, #gallery, #upload, #controls'
    right = page.eval_on_selector_all(parts, 'parts => Math.max(...parts.map(x => x.getBoundingClientRect().right))')
    assert 0 < right <= width and page.evaluate('document.documentElement.scrollWidth') <= width
    background = brightness(page.evaluate('getComputedStyle(document.body).backgroundColor'))
    text = brightness(page.eval_on_selector('.answer h3', 'part => getComputedStyle(part).color'))
    assert min(background, text) < 80 and max(background, text) > 200 and (text > background) == (scheme == 'dark')


def test_screenshot(page, explorer, choice, screenshots):
    """The page for docs/explorer.md. As many pixels of the mask have its colour as patches are masked."""
    page.click('#tower label:has-text("ft/best")')
    wait_for(page, 'Relevance', 'published, ft/best')
    page.wait_for_timeout(500)  # thumbnails and layout
    file = screenshots / 'explorer.png'
    with Image.open(io.BytesIO(page.screenshot())) as taken:
        taken.convert('RGB').quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert file.stat().st_size < 300_000
    picture = np.asarray(Image.open(file).convert('RGB')).astype(int)
    box = page.locator('.stages img >> nth=2').bounding_box()
    x, y, side = (round(box[key]) for key in ('x', 'y', 'width'))
    red, green, blue = np.moveaxis(picture[y : y + side, x : x + side], 2, 0)
    orange = (red > green + 40) & (green > blue + 20)
    masked = explorer.look(replace(choice, tower='ft/best')).mask.float().mean().item()
    assert MASK_COLOR == '#D55E00' and orange.mean() == pytest.approx(masked, abs=0.06)
