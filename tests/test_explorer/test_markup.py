"""What the page shows, as HTML and as a picture."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from mmcfmask.explorer.images import Source
from mmcfmask.explorer.markup import answers_html, draw_look, message_html, stages_html
from mmcfmask.explorer.session import Answer, Choice, Look
from mmcfmask.models.maker import Counterfactual
from mmcfmask.reporting.stages import MASK_COLOR

CLASSES = ['cat', 'dog <b>', 'fox', 'hen', 'owl', 'pig', 'ram']


@pytest.fixture
def look():
    """A red image, of whose 2 x 4 patches the three on the left are masked and blue."""
    image = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 40, 80)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    pixels = mask.repeat_interleave(20, 0).repeat_interleave(20, 1)
    blue = torch.tensor([0, 0, 1.0])[:, None, None].expand(3, 40, 80)
    made = torch.where(pixels, blue, image)
    first = torch.tensor([0.5, 0.2, 0.12, 0.08, 0.05, 0.04, 0.01])
    answers = [Answer('zero-shot', first, first.flip(0)), Answer('ft/best', first, first)]
    choice = Choice(Source('test', 3), 6, Source('/x/my <donor>.png'), value=0.3, alpha=0.5)
    relevance = mask.float()
    return Look(
        choice, image, relevance, mask, made, Counterfactual(made[None], mask[None], False), [blue], None, answers
    )


def pictures(html):
    """{title: pixels} of the stages."""
    found = re.findall(r'src="data:image/png;base64,([^"]*)" alt="([^":]*):', html)
    return {title: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data, title in found}


def test_stages(look):
    html = stages_html(look)
    shown = pictures(html)
    assert list(shown) == ['Image', 'Relevance', 'Mask', 'Counterfactual', 'Donor']
    assert {picture.shape for picture in shown.values()} == {(300, 600, 3)}  # the shape of the image
    assert '3 of 8 patches (38%)' in html and 'my &lt;donor&gt;.png' in html
    middles = [(75, 75), (75, 225), (225, 75), (225, 225), (75, 525)]  # of five patches, three of them masked
    orange = np.array(to_rgb(MASK_COLOR)) * 255
    for (y, x), masked in zip(middles, [True, True, True, False, False]):
        assert shown['Image'][y, x].tolist() == [255, 0, 0]
        assert shown['Counterfactual'][y, x].tolist() == ([0, 0, 255] if masked else [255, 0, 0])
        mask = shown['Mask'][y, x].astype(int)
        assert (np.abs(mask - orange).max() < 60) == masked and (np.ptp(mask) > 20) == masked
        assert (shown['Relevance'][y, x].sum() > 450) == masked


def test_answers(look):
    html = answers_html(look, CLASSES)
    cards = re.findall(r'<section.*?</section>', html)
    assert len(cards) == 2 and 'α' not in cards[0] and 'α = 0.5' in cards[1]
    image, counterfactual = re.findall(r'<table>.*?</table>', cards[0])
    names = re.findall(r'<th scope="row">(.*?)</th>', image)
    assert names == ['cat', 'dog &lt;b&gt;', 'fox', 'hen', 'owl', 'ram']  # the chosen one last
    assert '<tr class="chosen"><th scope="row">ram</th><td class="bar"><i style="width:1.0%">' in image
    assert re.findall(r'<th scope="row">(.*?)</th>', counterfactual)[0] == 'ram' and counterfactual.count('<tr') == 5


def test_picture_to_save(look):
    figure = draw_look(look, CLASSES)
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == 'ram\nzero-shot: cat 50% → ram 50%\nft/best: cat 50% → cat 50%'
    assert texts[1:] == ['Image', 'Relevance', 'Mask', 'Counterfactual'] and len(figure.axes) == 5


def test_messages():
    assert message_html('') == '' and message_html('no <i>').endswith('role="alert">no &lt;i&gt;</p>')
