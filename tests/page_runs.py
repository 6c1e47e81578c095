"""Runs of models that do not exist, with all that the report page can show: predictions for single images of the
built-in benchmark, groups, WiSE-FT curves and a picture of counterfactual images."""

import csv
import json

import numpy as np
from PIL import Image
from synthetic_runs import result, write_run

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie')
IMAGES = 200
# {method: {set: accuracy of each seed}}; the names sort in another order than that of METHODS.
METHODS = {
    'Zero-shot': {'imagenet': [68.0], 'imagenet-r': [78.0], 'imagenet-a': [50.0]},
    'FT': {'imagenet': [81.0, 82.0], 'imagenet-r': [65.0, 66.0], 'imagenet-a': [36.0, 35.0]},
    'A <b>bold</b> & "odd" name': {'imagenet': [80.0, 80.5], 'imagenet-r': [72.0, 73.0], 'imagenet-a': [45.0, 44.0]},
}
SPLITS = {'imagenet': 'test', 'imagenet-r': 'r', 'imagenet-a': 'a'}
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def write_predictions(path, split, accuracy, seed):
    """A CSV as of tools/test.py --predictions; returns its per-class accuracies."""
    rng = np.random.default_rng(seed)
    right = np.zeros(IMAGES, bool)
    right[rng.permutation(IMAGES)[: round(accuracy * IMAGES / 100)]] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'gt', 'pred', 'correct', 'confidence'])
        for i in range(IMAGES):
            label = CLASSES[i % 10]
            predicted = label if right[i] else CLASSES[(i % 10 + 1 + rng.integers(9)) % 10]
            writer.writerow([f'shapes/{split}/0/{i}', label, predicted, int(right[i]), '0.900000'])
    return {name: float(100 * right[k::10].mean()) for k, name in enumerate(CLASSES)}


def write_page_runs(folder):
    """Writes ``folder/<number>/seed<N>/metrics.json`` and what lies beside them; returns ``folder``."""
    for number, (method, sets) in enumerate(METHODS.items()):
        for seed in range(len(sets['imagenet'])):
            place = folder / str(number) / f'seed{seed}'
            changes = {}
            for name, values in sets.items():
                csv_file = place / 'predictions' / f'{name}.csv'
                per_class = write_predictions(csv_file, SPLITS[name], values[seed], 100 * number + seed)
                counts = dict.fromkeys(CLASSES, IMAGES // 10)
                changes[name] = dict(per_class=per_class, per_class_count=counts, images=IMAGES, classes=10)
                changes[name].update(published_images=None, published_classes=None, complete=None)
            changes['imagenet-r']['notes'] = ['incomplete: 200 of 30,000 images']
            accuracies = {name: values[seed] for name, values in sets.items()}
            trained = number > 0
            write_run(
                place / 'metrics.json',
                accuracies,
                method=method,
                seed=seed if trained else None,
                sets=changes,
                command=f'mmcfmask test configs/{number}.py --out metrics.json',
                training={'optim_wrapper.optimizer.lr': '1e-05'} if trained else None,
            )
            add_groups(place / 'metrics.json', 20.0 + number + seed, 80.0 + number + seed)
            if method == 'FT':
                write_curve(place / 'wise_ft.json', accuracies)
    Image.fromarray(np.full((60, 200, 3), 90, np.uint8)).save(folder / 'counterfactuals_object_single.png')
    return folder


def add_groups(path, worst, average):
    """A set with groups beside the shifts."""
    content = json.loads(path.read_text())
    entry = result(60.0, images=400, num_classes=10, names=CLASSES)
    entry['metrics'].update(worst_group=worst, group_average=average)
    entry['groups'] = {
        name: dict(accuracy=value, count=100, train_count=number)
        for name, value, number in (('own', average, 190), ('other', worst, 10))
    }
    content['sets']['groups'] = entry
    path.write_text(json.dumps(content))


def write_curve(path, accuracies):
    """A file of tools/wise_ft.py: a line from 10 points below on the ID set, and 10 above on the others, to a run."""
    line = []
    for alpha in ALPHAS:
        change = {name: (1 - alpha) * (-10 if name == 'imagenet' else 10) for name in accuracies}
        line.append(dict(alpha=alpha, metrics={f'{n}/top1': v + change[n] for n, v in accuracies.items()}))
    path.write_text(json.dumps(dict(sets=dict.fromkeys(accuracies, {}), line=line)))
