"""What the built-in benchmark is made of: classes, outlines, colours, textures, styles, prompts, splits and ranges."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIZE = 64

#: The outlines of every class. Pre-training shows the first one alone; fine-tuning and all tests show the others too.
OUTLINES = dict(
    circle=('circle', 'ellipse'),
    square=('square', 'rectangle'),
    triangle=('triangle', 'right-angled triangle'),
    star=('star', 'six-pointed star'),
    cross=('cross', 'saltire'),
    heart=('heart', 'inverted heart'),
    ring=('ring', 'broken ring'),
    crescent=('crescent', 'mirrored crescent'),
    bolt=('bolt', 'mirrored bolt'),
    bowtie=('bowtie', 'hourglass'),
)

SHAPES_CLASSES = tuple(OUTLINES)

NEW_OUTLINE_RATE = 0.5
"""Share of objects, outside of pre-training, with an outline that pre-training did not show."""

COLORS = {
    'red': (0.85, 0.15, 0.15),
    'orange': (0.95, 0.55, 0.10),
    'yellow': (0.93, 0.86, 0.20),
    'green': (0.20, 0.62, 0.24),
    'cyan': (0.25, 0.80, 0.85),
    'blue': (0.15, 0.30, 0.85),
    'purple': (0.52, 0.20, 0.68),
    'pink': (0.96, 0.55, 0.75),
    'brown': (0.48, 0.30, 0.15),
    'white': (0.94, 0.94, 0.94),
    'gray': (0.50, 0.50, 0.50),
    'black': (0.10, 0.10, 0.10),
}

TEXTURES = ('brick', 'striped', 'dotted', 'checkered', 'wavy', 'grassy', 'cloudy', 'grid', 'zigzag', 'sandy')

# Three, three, two and two classes share as many textures and colours.
_SHARED_BACKGROUNDS = (
    (('grassy', 'green'), ('brick', 'red'), ('sandy', 'yellow')),
    (('cloudy', 'blue'), ('grid', 'white'), ('dotted', 'pink')),
    (('wavy', 'cyan'), ('striped', 'black')),
    (('zigzag', 'purple'), ('checkered', 'brown')),
)

#: The class's own backgrounds, in the order of SHAPES_CLASSES: combinations of texture and colour. Classes that share
#: textures and colours have each of them in one combination, as in a Latin square: only which goes with which tells the
#: class. So a linear layer on features that show texture and colour cannot tell these classes apart by the background.
CLASS_BACKGROUNDS = tuple(
    tuple((texture, group[(i + shift) % len(group)][1]) for i, (texture, _) in enumerate(group))
    for group in _SHARED_BACKGROUNDS
    for shift in range(len(group))
)

SPURIOUS_RATE = 0.95
"""Share of images of the ID splits on one of the class's own backgrounds; the others are on another class's."""

RENDITIONS = ('flat', 'painted', 'inverted', 'cartoon')

STYLES = ('photo', *RENDITIONS, 'sketch')

STYLE_WORDS = dict(
    photo=('photo', 'picture', 'photograph'),
    flat=('flat icon', 'clip art'),
    painted=('painting', 'watercolor'),
    inverted=('negative', 'inverted photo'),
    cartoon=('cartoon', 'comic'),
    sketch=('sketch', 'line drawing', 'doodle'),
)

#: Prompts of the zero-shot head, for ``str.format``.
SHAPES_TEMPLATES = (
    'a photo of a {}.',
    'a picture of a {}.',
    'a photo of a small {}.',
    'a photo of a large {}.',
    'a flat icon of a {}.',
    'a painting of a {}.',
    'a negative of a {}.',
    'a cartoon of a {}.',
    'a sketch of a {}.',
    'a line drawing of a {}.',
)

#: Default number of images of each split.
SPLIT_SIZES = dict(pretrain=60_000, train=4000, val=500, test=1000, v2=1000, r=1000, sketch=1000, a=1000, groups=2000)

SPLITS = tuple(SPLIT_SIZES)


@dataclass(frozen=True)
class Nuisance:
    """Ranges of everything but the class; lengths in pixels, angles in degrees."""

    radius: tuple[float, float]
    max_angle: float
    max_shift: float
    clutter: tuple[int, int] = (0, 0)  # number of stray bars, inclusive
    cut_rate: float = 0.0  # share of objects that stick out of the image
    noise: tuple[float, float] = (0.01, 0.04)  # of the sensor, photo style only
    light: float = 0.35  # strength of the lighting gradient, photo style only


_ID = Nuisance(radius=(15, 22), max_angle=20, max_shift=8, clutter=(0, 1))

NUISANCES = dict(
    pretrain=Nuisance(
        radius=(13, 23), max_angle=25, max_shift=9, clutter=(0, 2), cut_rate=0.05, noise=(0.01, 0.05), light=0.4
    ),
    train=_ID,
    val=_ID,
    test=_ID,
    v2=Nuisance(radius=(13, 21), max_angle=28, max_shift=10, clutter=(0, 2), noise=(0.02, 0.06), light=0.5),
    r=_ID,
    sketch=_ID,
    groups=_ID,
    a=Nuisance(radius=(11, 16), max_angle=25, max_shift=12, clutter=(1, 3), cut_rate=0.2),
)
