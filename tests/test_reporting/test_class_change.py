import itertools

import numpy as np
import pytest

from mmcfmask.reporting.class_change import class_change_figure, class_changes


def many(num=200, seed=0):
    rng = np.random.default_rng(seed)
    before = {f'class {i}': float(v) for i, v in enumerate(rng.uniform(20, 90, num))}
    after = {name: float(np.clip(v + rng.normal(-3, 20), 0, 100)) for name, v in before.items()}
    return class_changes(before, after, {name: 10 + i for i, name in enumerate(before)})


def names(figure):
    """Texts at the left of the lowest axes, from top to bottom."""
    texts = [text for text in figure.axes[-1].texts if text.get_ha() == 'right']
    return [text.get_text() for text in sorted(texts, key=lambda text: text.xy[1])]


def test_changes_are_of_shared_classes_greatest_loss_first():
    changes = class_changes(
        {'a': 50.0, 'b': 60.0, 'c': 10.0, 'only before': 1.0},
        {'c': 20.0, 'b': 30.0, 'a': 50.0, 'only after': 1.0},
        {'a': 5, 'b': 6},
    )
    assert [(c.name, c.count, c.before, c.after, c.change) for c in changes] == [
        ('b', 6, 60, 30, -30),
        ('a', 5, 50, 50, 0),
        ('c', None, 10, 20, 10),
    ]


def test_figure_names_the_greatest_losses_and_gains():
    changes = many()
    figure = class_change_figure(changes, 'Zero-shot', 'FT')
    assert names(figure) == [f'{c.name} ({c.count})' for c in [*changes[:10], *changes[-5:]]]
    curve, dumbbells = figure.axes
    change = np.array([c.change for c in changes])
    texts = [text.get_text() for text in curve.texts]
    assert texts[0] == f'{(change < 0).sum()} lost' and texts[1] == f'{(change > 0).sum()} gained'
    assert f'{abs(change.mean()):.1f}' in texts[2] and curve.get_xlabel() == '200 classes, in order'
    bars = [line.get_xdata() for line in dumbbells.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 1]
    assert [tuple(bar) for bar in bars] == [(c.before, c.after) for c in [*changes[:10], *changes[-5:]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['Zero-shot', 'FT']


def test_a_small_set_is_shown_whole():
    changes = class_changes(
        {'dog': 50.0, 'guitar': 60.0, 'horse': 70.0},
        {'dog': 55.0, 'guitar': 20.0, 'horse': 70.0},
        dict.fromkeys(('dog', 'guitar', 'horse'), 30),
    )
    figure = class_change_figure(changes)
    assert len(figure.axes) == 1 and names(figure) == ['guitar', 'horse', 'dog']
    assert [text.get_text() for text in figure.axes[0].texts if text.get_ha() == 'left'] == ['−40', '0', '+5']


@pytest.mark.parametrize(
    'before, after', [('Zero-shot', 'FT'), ('variants_object_single_vitb16', 'variants_context_multi_vitb16')]
)
def test_every_text_is_inside_the_figure_and_touches_no_other(before, after):
    changes = [c._replace(name=c.name + ' of the most intricate, long-winded name $x_1$') for c in many()]
    figure = class_change_figure(changes, before, after)
    assert figure.get_size_inches()[0] == 3.3
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts] + list(figure.legends[0].get_texts())
    texts += [axes.xaxis.label for axes in figure.axes] + [figure.axes[0].yaxis.label]
    boxes = {text: text.get_window_extent() for text in texts if text.get_text()}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (a, b)


def test_only_gains():
    figure = class_change_figure(
        class_changes({f'c{i}': 10.0 for i in range(50)}, {f'c{i}': 20.0 + i for i in range(50)})
    )
    assert names(figure) == [f'c{i}' for i in range(45, 50)]


def test_nothing_in_common():
    with pytest.raises(ValueError, match='no class in common'):
        class_change_figure(class_changes({'a': 1.0}, {'b': 1.0}))
