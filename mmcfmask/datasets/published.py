"""What was published about benchmarks besides ImageNet's usual shifts (docs/protocols.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSet:
    """What was published about a set, and how its folder is recognised.

    Attributes:
        title: Name in print.
        images, num_classes: Published counts of what is scored.
        source: Where to get it.
        folders: Names of its folder; those of the unpacked archives come first.
        signs: Glob patterns that match inside such a folder, but not inside a folder of many sets.
        also: Ambiguous folder names, which count only together with the signs.
    """

    title: str
    images: int
    num_classes: int
    source: str
    folders: tuple[str, ...]
    signs: tuple[str, ...]
    also: tuple[str, ...] = ()

    @property
    def protocol(self) -> dict:
        """For the metainfo of a dataset."""
        return dict(images=self.images, num_classes=self.num_classes, source=self.source)


IN9_IMAGES = 4050  # of each of the eight variations
# Images of each domain; Terra Incognita's are published in total only.
DOMAIN_IMAGES: dict[str, dict[str, int | None]] = {
    'pacs': dict(photo=1670, art_painting=2048, cartoon=2344, sketch=3929),
    'vlcs': dict(Caltech101=1415, LabelMe=2656, SUN09=3282, VOC2007=3376),
    'office-home': {'Art': 2427, 'Clipart': 4365, 'Product': 4439, 'Real World': 4357},
    'terra-incognita': dict.fromkeys(('location_100', 'location_38', 'location_43', 'location_46')),
    'domainnet': dict(
        clipart=48_129, infograph=51_605, painting=72_266, quickdraw=172_500, real=172_947, sketch=69_128
    ),
}
CELEBA_GROUPS = {  # women and men without blond hair, women and men with blond hair
    'train': (71_629, 66_874, 22_880, 1_387),
    'val': (8_535, 8_276, 2_874, 182),
    'test': (9_767, 7_535, 2_480, 180),
}
WILDS_IMAGES = {
    'camelyon17': dict(train=302_436, id_val=33_560, val=34_904, test=85_054),
    'iwildcam': dict(train=129_809, id_val=7_314, id_test=8_154, val=14_961, test=42_791),
    'fmow': dict(train=76_863, id_val=11_483, id_test=11_327, val=19_915, test=22_108),
    'rxrx1': dict(train=40_612, id_test=40_612, val=9_854, test=34_432),
}

_GEIRHOS = 'https://github.com/bethgelab/model-vs-human/releases/tag/v0.1'
_DOMAINBED = 'https://github.com/facebookresearch/DomainBed'
_WILDS = 'https://github.com/p-lambda/wilds'

BENCHMARKS = {
    'imagenet-9': PublishedSet(
        'ImageNet-9 (eight variations)',
        8 * IN9_IMAGES,
        9,
        'https://github.com/MadryLab/backgrounds_challenge/releases',
        ('bg_challenge', 'backgrounds_challenge', 'imagenet-9'),
        ('mixed_same/val', 'mixed_rand/val', 'original/val', 'mixed_rand/00_dog'),
    ),
    'counteranimal': PublishedSet(
        'CounterAnimal',
        13_100,
        45,
        'https://counteranimal.github.io',
        ('CounterAnimal', 'LAION-final'),
        ('LAION-final', '[0-9]* */co[mu]*-*'),
    ),
    'cue-conflict': PublishedSet(
        'Cue conflict',
        1280,
        16,
        _GEIRHOS,
        ('cue-conflict', 'style-transfer-preprocessed-512'),
        ('airplane', 'truck'),
    ),
    'silhouettes': PublishedSet(
        'Silhouettes', 160, 16, _GEIRHOS, ('silhouette', 'silhouettes', 'filled-silhouettes'), ('airplane', 'truck')
    ),
    'edges': PublishedSet('Edges', 160, 16, _GEIRHOS, ('edge', 'edges'), ('airplane', 'truck')),
    'imagenet-d': PublishedSet(
        'ImageNet-D',
        4835,
        113,
        'https://github.com/chenshuang-zhang/imagenet_d',
        ('ImageNet-D',),
        ('background/*', 'texture/*', 'material/*'),
    ),
    # Files with labels of ImageNet's validation images.
    'imagenet-real': PublishedSet(
        'ImageNet ReaL', 46_837, 1000, 'https://github.com/google-research/reassessed-imagenet', (), ('real.json',)
    ),
    'imagenet-x': PublishedSet(
        'ImageNet-X',
        46_110,
        1000,
        'https://github.com/facebookresearch/imagenetx',
        (),
        ('imagenet_x_val_top_factor.jsonl',),
    ),
    'imagenet-hard': PublishedSet(
        'ImageNet-Hard',
        10_980,
        1000,
        'https://huggingface.co/datasets/taesiri/imagenet-hard',
        ('imagenet-hard',),
        ('metadata.jsonl',),
    ),
    'pacs': PublishedSet('PACS', 9_991, 7, _DOMAINBED, ('PACS', 'kfold'), ('art_painting',)),
    'vlcs': PublishedSet('VLCS', 10_729, 5, _DOMAINBED, ('VLCS',), ('Caltech101', 'LabelMe')),
    'office-home': PublishedSet(
        'Office-Home', 15_588, 65, _DOMAINBED, ('office_home', 'OfficeHomeDataset_10072016'), ('Product',)
    ),
    'terra-incognita': PublishedSet(
        'Terra Incognita', 24_788, 10, _DOMAINBED, ('terra_incognita',), ('location_100', 'location_38')
    ),
    'domainnet': PublishedSet(
        'DomainNet', 586_575, 345, _DOMAINBED, ('domain_net', 'DomainNet'), ('quickdraw', 'infograph')
    ),
    'celeba': PublishedSet(
        'CelebA',
        sum(map(sum, CELEBA_GROUPS.values())),
        2,
        'https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html',
        ('celebA_v1.0', 'celeba'),
        ('list_attr_celeba.csv', 'img_align_celeba'),
    ),
    'camelyon17': PublishedSet('Camelyon17-WILDS', 455_954, 2, _WILDS, ('camelyon17_v1.0', 'camelyon17'), ('patches',)),
    'iwildcam': PublishedSet(
        'iWildCam2020-WILDS', 203_029, 182, _WILDS, ('iwildcam_v2.0', 'iwildcam'), ('metadata.csv',)
    ),
    'fmow': PublishedSet('FMoW-WILDS', 141_696, 62, _WILDS, ('fmow_v1.1', 'fmow'), ('rgb_metadata.csv',)),
    'rxrx1': PublishedSet('RxRx1-WILDS', 125_510, 1139, _WILDS, ('rxrx1_v1.0', 'rxrx1'), ('images',)),
    'cifar10': PublishedSet(
        'CIFAR-10 (test)',
        10_000,
        10,
        'https://www.cs.toronto.edu/~kriz/cifar.html',
        ('cifar10', 'cifar-10'),
        ('test/airplane', 'airplane'),
    ),
    'cifar100': PublishedSet(
        'CIFAR-100 (test)',
        10_000,
        100,
        'https://www.cs.toronto.edu/~kriz/cifar.html',
        ('cifar100', 'cifar-100'),
        ('test/aquarium_fish', 'aquarium_fish'),
    ),
    'food101': PublishedSet(
        'Food-101 (test)',
        25_250,
        101,
        'https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/',
        ('food101', 'food-101'),
        ('test/apple_pie', 'apple_pie'),
    ),
    'cars': PublishedSet(
        'Stanford Cars (test)',
        8_041,
        196,
        'https://pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html',
        ('stanford_cars', 'cars'),
        ('test/*',),
    ),
}
"""By their names in ``tools/check_data.py`` and ``tools/test.py``."""
