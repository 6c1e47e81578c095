"""The results of the explorer as HTML for the page, and as a picture to save."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..engine.counterfactual_images import choose_variant
from ..reporting import counterfactual_panel
from ..reporting.stages import picture, show_mask, show_relevance
from .session import Answer, Explorer, Look
from .towers import ZERO_SHOT

TOP = 5  # classes of a prediction
SIDE = 300  # pixels of a picture of the page
WORDS = dict(none='Hidden from the model', single='Counterfactual', multi='Counterfactual')


def stages_html(look: Look) -> str:
    """Image, relevance, mask, counterfactual image and donors side by side."""
    image, outline = look.image.numpy(), None if look.object is None else look.object.numpy()
    relevance = look.relevance.numpy()
    relevance = relevance / (relevance.max() + 1e-8)  # as for the threshold of the mask
    height, width = SIDE, round(SIDE * image.shape[2] / image.shape[1])
    taken, patches = int(look.mask.sum()), look.mask.numel()
    choice, mask = look.choice, look.mask.numpy()
    seen = picture(lambda axes: show_relevance(axes, image, relevance, outline), height, width)
    cut = picture(lambda axes: show_mask(axes, image, mask, outline), height, width)
    figures = [
        _figure('Image', choice.image.words, _resized(look.image, height, width)),
        _figure('Relevance', f'{choice.map}, {choice.tower}', seen),
        _figure('Mask', f'{taken} of {patches} patches ({taken / patches:.0%})', cut),
        _figure(WORDS[choice.fill], f'{choice.mask}, {choice.fill}', _resized(look.counterfactual, height, width)),
    ]
    if look.donors and choice.donor:
        others = f' and {len(look.donors) - 1} others' if len(look.donors) > 1 else ''
        figures.append(_figure('Donor', choice.donor.words + others, _resized(look.donors[0], height, width)))
    return f'<div class="stages">{"".join(figures)}</div>'


def answers_html(look: Look, classes: Sequence[str]) -> str:
    """The likeliest classes of every model, for the image and for its counterfactual image."""
    cards = []
    for answer in look.answers:
        alpha = '' if answer.tower == ZERO_SHOT else f'<span class="alpha">α = {look.choice.alpha:g}</span>'
        columns = ''.join(
            f'<div><h4>{title}</h4>{_bars(values, classes, look.choice.label)}</div>'
            for title, values in (('Image', answer.image), (WORDS[look.choice.fill], answer.counterfactual))
        )
        name = escape(answer.tower)
        head = f'<h3>{name}{alpha}</h3>'
        cards.append(f'<section class="answer" aria-label="{name}">{head}<div class="pair">{columns}</div></section>')
    return f'<div class="answers">{"".join(cards)}</div>'


def title_html(explorer: Explorer) -> str:
    """The head of the page: which config it shows."""
    mask, fill, value = choose_variant(explorer.cfg, None, None, None)
    share = explorer.settings.get('mask_share')
    number = f'share {share:g}' if value is None else f'value {value:g}'
    trained = f'trains with {mask} mask, {fill} fill, {number}'
    text = trained if explorer.trains_on_counterfactuals else 'does not train on counterfactual images'
    name = escape(str(explorer.cfg.filename or 'config'))
    return f'<h1>mmcfmask explorer</h1><p><code>{name}</code> {text}</p>'


def message_html(text: str) -> str:
    """A message for people, such as an error."""
    return f'<p class="message" role="alert">{escape(text)}</p>' if text else ''


def draw_look(look: Look, classes: Sequence[str]) -> Figure:
    """The picture to save: image, relevance, mask and counterfactual image, with the predictions."""
    name = classes[look.choice.label].split(',')[0]
    lines = [name, *(_change(answer, classes) for answer in look.answers)]
    stages = ('Image', 'Relevance', 'Mask', 'Hidden' if look.made.hidden else 'Counterfactual')
    return counterfactual_panel(
        look.image[None],
        look.relevance[None],
        look.mask[None],
        look.counterfactual[None],
        ['\n'.join(lines)],
        None if look.object is None else look.object[None],
        stages=stages,
        width=3.2 + 0.055 * max(map(len, lines)),
    )


def _change(answer: Answer, classes: Sequence[str]) -> str:
    """'zero-shot: star 93 % → ring 51 %'."""
    parts = [f'{classes[values.argmax()].split(",")[0]} {values.max():.0%}' for values in answer[1:]]
    return f'{answer.tower}: {" → ".join(parts)}'


def _bars(values: Tensor, classes: Sequence[str], label: int) -> str:
    """The likeliest classes with bars, and the chosen class below them if it is not among them."""
    top = values.topk(min(TOP, len(values))).indices.tolist()
    rows = []
    for index in top + ([] if label in top else [label]):
        chosen = ' class="chosen"' if index == label else ''
        share = float(values[index])
        name, bar = escape(classes[index]), f'<i style="width:{share:.1%}"></i>'
        rows.append(f'<tr{chosen}><th scope="row">{name}</th><td class="bar">{bar}</td><td>{share:.1%}</td></tr>')
    return f'<table>{"".join(rows)}</table>'


def _figure(title: str, text: str, pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG', compress_level=1)  # quick: it goes no further than this machine
    data = base64.b64encode(buffer.getvalue()).decode()
    title, text = escape(title), escape(text)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{title}: {text}">'
        f'<figcaption><b>{title}</b><span>{text}</span></figcaption></figure>'
    )


def _resized(image: Tensor, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 of (3, H, W) in 0..1."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
