"""metrics.json files as tools/test.py writes them, of models that do not exist."""

import json

import numpy as np

SHIFTS = ('imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet')
PUBLISHED = {
    'imagenet': (50000, 1000),
    'imagenet-v2': (10000, 1000),
    'imagenet-r': (30000, 200),
    'imagenet-a': (7500, 200),
    'imagenet-sketch': (50889, 1000),
    'objectnet': (18574, 113),
}


def reliability(accuracy, rng, num=2000, overconfidence=0.06):
    """Fifteen bins of predictions that are right with a probability somewhat below their confidence."""
    confidence = np.clip(rng.beta(0.5 + 4 * accuracy, 0.5 + 4 * (1 - accuracy), num), 0.02, 0.999)
    right = rng.random(num) < np.clip(confidence - overconfidence, 0, 1)
    index = np.minimum((confidence * 15).astype(int), 14)
    return [
        dict(
            count=int((index == i).sum()),
            confidence=float(confidence[index == i].mean()) if (index == i).any() else None,
            accuracy=float(right[index == i].mean()) if (index == i).any() else None,
        )
        for i in range(15)
    ]


def result(top1, images=None, classes=None, num_classes=6, seed=0, names=None, **changes):
    """What metrics.json says of one set."""
    rng = np.random.default_rng(seed)
    bins = reliability(top1 / 100, rng)
    total = sum(b['count'] for b in bins)
    ece = 100 * sum(b['count'] * abs(b['confidence'] - b['accuracy']) for b in bins if b['count']) / total
    names = names or [f'class {i}' for i in range(num_classes)]
    per_class = np.clip(rng.normal(top1, 15, len(names)), 0, 100).round(1)
    return {
        'metrics': dict(
            top1=top1,
            top5=min(100.0, top1 + 15),
            mean_per_class=float(per_class.mean()),
            nll=4 * (1 - top1 / 100),
            ece=ece,
        ),
        'dataset': 'FolderDataset',
        'root': 'data',
        'images': images or 600,
        'published_images': None,
        'classes': classes or len(names),
        'published_classes': None,
        'complete': None,
        'skipped': 0,
        'notes': [],
        'transform': ['Resize(224)', 'CenterCrop(224)'],
        'per_class': dict(zip(names, per_class.tolist())),
        'per_class_count': dict.fromkeys(names, 100),
        'reliability': bins,
        'speed': dict(images_per_second=100.0, data=1.0, forward=2.0, metric=0.1),
        **changes,
    }


def run_dict(accuracies, method='ft', seed=0, id_set=None, sets=None, **changes):
    """A metrics.json; ``accuracies`` are {set: top-1}, ``sets`` {set: changes to its entry}."""
    id_set = id_set or next(iter(accuracies))
    shifts = [name for name in accuracies if name != id_set]
    entries = {}
    for i, (name, top1) in enumerate(accuracies.items()):
        images, classes = PUBLISHED.get(name, (None, None))
        published = dict(published_images=images, published_classes=classes, complete=True) if images else {}
        options = dict(images=images, classes=classes, seed=(seed or 0) + 10 * i)
        entries[name] = result(top1, **{**options, **published, **(sets or {}).get(name, {})})
    return {
        'format': 1,
        'config': f'configs/{method}.py',
        'method': method,
        'seed': seed,
        'checkpoint': None if seed is None else dict(path='epoch_10.pth', sha256='0123456789abcdef' * 4),
        'id_set': id_set,
        'sets': entries,
        'ood_average': dict(top1=sum(accuracies[s] for s in shifts) / len(shifts), over=shifts) if shifts else None,
        'missing': {},
        'versions': dict(mmcfmask='0.1.0', torch='2.15.0'),
        'metrics': {f'{n}/top1': v for n, v in accuracies.items()},
        **changes,
    }


def write_run(path, accuracies, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run_dict(accuracies, **options)))
    return path
