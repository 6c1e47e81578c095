"""Backgrounds, shapes and other labels through the shipped config, from folders to numbers: a model that knows the
answers scores 100, one that knows the background or the texture alone scores what it must."""

import copy
import json

import numpy as np
import pytest
import trees
from mmengine.config import Config
from mmengine.runner import Runner
from oracle import config
from PIL import Image

from mmcfmask.datasets.imagenet_labels import IMAGENET_WNIDS
from mmcfmask.engine.config import load_config

CONFIG = str(trees.ROOT / 'configs' / 'baselines' / 'zeroshot_vitb16.py')
# Written down from the publications: a class folder of each benchmark and some of ImageNet's classes that it means.
IN9 = {
    '00_dog': (151, 207), '01_bird': (128, 90), '02_wheeled vehicle': (817, 656), '03_reptile': (39, 55),
    '04_carnivore': (288, 387), '05_insect': (301, 319), '06_musical instrument': (402, 889), '07_primate': (366, 384),
    '08_fish': (1, 389),
}  # fmt: skip
SHAPES = {
    'airplane': 404, 'bear': 294, 'bicycle': 671, 'bird': 10, 'boat': 554, 'bottle': 440, 'car': 817, 'cat': 281,
    'chair': 559, 'clock': 409, 'dog': 207, 'elephant': 386, 'keyboard': 508, 'knife': 499, 'oven': 766, 'truck': 867,
}  # fmt: skip
SALAMANDER = 25  # none of these


def save(path, index, noise=0):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:] = index // 256, index % 256, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


SHIPPED = load_config(CONFIG, {})


def run(root, work_dir, shift, edit=None, **model):
    """Test the oracle on one benchmark of the shipped config; its metrics, all metrics, and the loop.

    ``edit`` changes the config of the dataset and the metric of the benchmark.
    """
    id_set = 'edges' if shift != 'edges' else 'silhouettes'  # a small one
    write_stimuli(root / id_set)
    sets = {name: copy.deepcopy(SHIPPED.test_dataloader[name].to_dict()) for name in (id_set, shift)}
    metrics = {name: SHIPPED.test_evaluator.evaluators.get(name, dict(type='ShiftAccuracy')) for name in sets}
    if edit:
        metrics[shift] = edit(sets[shift]['dataset']) or metrics[shift]
    for loader in sets.values():
        loader.update(batch_size=50, num_workers=0, pin_memory=False)
        loader['dataset']['data_root'] = loader['dataset']['data_root'].replace('data/imagenet/', str(root))
        loader['dataset']['pipeline'][1]['image_size'] = 8
    runner = Runner.from_cfg(Config(config(sets, work_dir, model, dict(evaluators=metrics))))
    metrics = runner.test()
    found = {name.partition('/')[2]: value for name, value in metrics.items() if name.startswith(f'{shift}/')}
    return found, metrics, runner.test_loop


def at(folder, **options):
    """An edit that moves a dataset to a folder."""
    return lambda dataset: dataset.update(data_root=str(folder), **options)


def write_stimuli(folder):
    for shape, index in SHAPES.items():
        save(folder / shape / f'{shape}1.png', index)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('imagenet')
    for index, wnid in enumerate(IMAGENET_WNIDS):
        save(root / 'val' / wnid / f'ILSVRC2012_val_{index + 1:08d}.png', index)
    return root


VARIATIONS = ('original', 'mixed_same', 'mixed_rand', 'mixed_next', 'only_fg', 'no_fg', 'only_bg_b', 'only_bg_t')


def write_in9(root, says):
    """Two images of each class in each variation; ``says(variation, label, number)`` is the folder of what is seen."""
    folders = list(IN9)
    for variation in VARIATIONS:
        for label, folder in enumerate(folders):
            for number in range(2):
                seen = says(variation, label, number)
                save(
                    root / 'bg_challenge' / variation / 'val' / folder / f'fg_n_{number}_bg_n_{label}.png',
                    SALAMANDER if seen is None else IN9[folders[seen]][number],
                )


def test_imagenet9(root, tmp_path):
    write_in9(tmp_path, lambda variation, label, number: label)
    found, metrics, loop = run(root, tmp_path / 'w', 'imagenet-9', edit=at(tmp_path))
    assert found == {'bg_gap': 0.0, **{f'group_{name}': 100.0 for name in VARIATIONS}}
    assert 'ood_average/top1' not in metrics  # versions of one task: no shift
    assert len(loop.loaders['imagenet-9'].dataset) == 8 * 18


def test_imagenet9_by_the_background_alone(root, tmp_path):
    """Right where the background is the object's own, or by chance of the same class; lost without a background."""

    def says(variation, label, number):
        background = dict(mixed_rand=(label + number) % 9, mixed_next=(label + 1) % 9, only_fg=None)
        return background.get(variation, label)

    write_in9(tmp_path, says)
    found, _, loop = run(root, tmp_path / 'w', 'imagenet-9', edit=at(tmp_path))
    assert found == {
        'bg_gap': 50.0, 'group_original': 100.0, 'group_mixed_same': 100.0, 'group_mixed_rand': 50.0,
        'group_mixed_next': 0.0, 'group_only_fg': 0.0, 'group_no_fg': 100.0, 'group_only_bg_b': 100.0,
        'group_only_bg_t': 100.0,
    }  # fmt: skip
    assert loop.results['imagenet-9']['details']['groups']['mixed_rand']['count'] == 18


def test_an_answer_outside_of_the_nine_is_wrong(root, tmp_path):
    write_in9(tmp_path, lambda variation, label, number: label)
    found, _, _ = run(root, tmp_path / 'w', 'imagenet-9', distracted=[SALAMANDER], edit=at(tmp_path))
    assert {value for name, value in found.items()} == {0.0}


def write_counteranimal(root, says):
    for index, name in ((9, 'ostrich'), (296, 'ice bear'), (13, 'junco')):
        for kind, count in (('common-snow', 4), ('counter-grass', 2)):
            for number in range(count):
                seen = says(index, kind)
                save(root / 'CounterAnimal' / 'LAION-final' / f'{index} {name}' / kind / f'{number}.png', seen)


def test_counteranimal(root, tmp_path):
    write_counteranimal(tmp_path, lambda index, kind: index)
    found, metrics, _ = run(root, tmp_path / 'w', 'counteranimal', edit=at(tmp_path))
    assert found == dict(counter_drop=0.0, group_common=100.0, group_counter=100.0)
    assert 'ood_average/top1' not in metrics
    # Snow alone means the ice bear, grass alone the ostrich.
    write_counteranimal(tmp_path, lambda index, kind: 296 if 'snow' in kind else 9)
    found, _, _ = run(root, tmp_path / 'w', 'counteranimal', edit=at(tmp_path))
    assert found['group_common'] == pytest.approx(100 / 3) and found['group_counter'] == pytest.approx(100 / 3)
    write_counteranimal(tmp_path, lambda index, kind: index if 'snow' in kind else 1)
    assert run(root, tmp_path / 'w', 'counteranimal', edit=at(tmp_path))[0]['counter_drop'] == 100.0


def test_one_of_the_groups_is_a_shift(root, tmp_path):
    write_counteranimal(tmp_path, lambda index, kind: index if 'grass' in kind else 1)

    def edit(dataset):
        dataset.update(data_root=str(tmp_path), groups=['counter'])
        return dict(type='ShiftAccuracy')

    found, metrics, _ = run(root, tmp_path / 'w', 'counteranimal', edit=edit)
    assert found['top1'] == metrics['ood_average/top1'] == found['mean_per_class'] == 100.0


def write_cue_conflicts(root, says):
    """Every shape with every texture, its own included, as the published set has."""
    for shape in SHAPES:
        for number, texture in enumerate(SHAPES, start=1):
            save(root / 'cue-conflict' / shape / f'{shape}{number}-{texture}{number}.png', says(shape, texture))


@pytest.mark.parametrize('cue', ['shape', 'texture'])
def test_shape_bias(cue, root, tmp_path):
    answers = dict(shape=lambda s, t: SHAPES[s], texture=lambda s, t: SHAPES[t])
    write_cue_conflicts(tmp_path, answers[cue])
    found, metrics, _ = run(root, tmp_path / 'w', 'cue-conflict', height=60.0, edit=at(tmp_path))
    assert 'ood_average/top1' not in metrics and 'top1' not in found
    conflicts = 100 * 15 / 16
    if cue == 'shape':
        assert found == dict(shape_bias=100.0, shape_answers=conflicts, texture_answers=0.0)
    else:
        assert found == dict(shape_bias=0.0, shape_answers=0.0, texture_answers=conflicts)


@pytest.mark.parametrize('stimuli', ['silhouettes', 'edges'])
def test_silhouettes_and_edges(stimuli, root, tmp_path):
    write_stimuli(tmp_path / stimuli.removesuffix('s'))
    found, metrics, _ = run(root, tmp_path / 'w', stimuli, height=60.0, edit=at(tmp_path))
    assert found['top1'] == metrics['ood_average/top1'] == 100.0
    assert 'top5' in found and found['mean_per_class'] == 100.0


def test_imagenet_d(root, tmp_path):
    """Any of the classes of a folder is right, in a decision between all 1000."""
    means = dict(clothes_hamper=(588,), helmet=(518, 560), alarm_clock=(409, 530), pen=(418, 563, 749))
    for part, folders in dict(background=means, texture=['helmet'], material=['pen', 'helmet']).items():
        for folder in folders:
            for number, index in enumerate(means[folder]):
                save(tmp_path / 'ImageNet-D' / part / folder / f'{number}.png', index)
    (tmp_path / 'ImageNet-D' / 'questions').mkdir()
    found, metrics, loop = run(root, tmp_path / 'w', 'imagenet-d', edit=at(tmp_path))
    assert found['top1'] == found['top5'] == metrics['ood_average/top1'] == 100.0
    assert {name for name in found if 'group' in name} == {'group_background', 'group_texture', 'group_material'}
    assert len(loop.loaders['imagenet-d'].dataset) == 8 + 2 + 5
    assert run(root, tmp_path / 'w', 'imagenet-d', distracted=[1], edit=at(tmp_path))[0]['top1'] == 0.0


def test_real_labels(root, tmp_path):
    """Any label is right, images without one do not count, and the set is no shift."""
    labels = [[index] for index in range(1000)]
    labels[3], labels[4], labels[5] = [], [4, 900], [901]
    (root / 'real.json').write_text(json.dumps(labels))
    found, metrics, loop = run(root, tmp_path, 'imagenet-real')
    assert found['accuracy'] == pytest.approx(100 * 998 / 999) and 'top1' not in found
    assert len(loop.loaders['imagenet-real'].dataset) == 999 and 'ood_average/top1' not in metrics


def test_factors(root, tmp_path):
    """Accuracy and error ratio of each factor; prototypes and images that are not annotated do not count."""
    from mmcfmask.datasets.relabelled import FACTORS

    rows = []
    for index in range(12):
        chosen = {'pose': index < 8, 'background': index >= 8, 'color': index == 0}
        rows.append(
            {'file_name': f'ILSVRC2012_val_{index + 1:08d}.png', 'class': index}
            | {factor: int(chosen.get(factor, False)) for factor in FACTORS}
        )
    file = root / 'imagenet_x_val_multi_factor.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (root / 'prototypical_paths.csv').write_text('file_name\nILSVRC2012_val_00000012.png\n')
    found, _, loop = run(root, tmp_path, 'imagenet-x')
    assert len(loop.loaders['imagenet-x'].dataset) == 11
    assert found['accuracy'] == found['worst_factor'] == found['group_pose'] == 100.0
    assert not {name for name in found if name.startswith('error_ratio')}  # there is no error
    # Class 8 to 10 are answered wrongly: all errors are those of backgrounds.
    for index in (8, 9, 10):
        path = root / 'val' / IMAGENET_WNIDS[index] / f'ILSVRC2012_val_{index + 1:08d}.png'
        save(path, 500)
    found, _, _ = run(root, tmp_path, 'imagenet-x')
    for index in (8, 9, 10):
        save(root / 'val' / IMAGENET_WNIDS[index] / f'ILSVRC2012_val_{index + 1:08d}.png', index)
    assert found['accuracy'] == pytest.approx(100 * 8 / 11) and found['worst_factor'] == 0.0
    assert found['error_ratio_background'] == pytest.approx(11 / 3) and found['error_ratio_color'] == 0.0
    assert found['group_color'] == 100.0


def test_imagenet_hard(root, tmp_path):
    rows = [dict(file_name=f'{n}.png', label=label) for n, label in enumerate([[7], [8, 900], [901, 9]])]
    for number in range(3):
        save(tmp_path / 'imagenet-hard' / f'{number}.png', 7 + number)
    (tmp_path / 'imagenet-hard' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found, metrics, _ = run(root, tmp_path / 'w', 'imagenet-hard', edit=at(tmp_path))
    assert found['top1'] == found['top5'] == metrics['ood_average/top1'] == 100.0


def run_config(name, data_root, work_dir, num_classes):
    """Test the oracle on all sets of a shipped config."""
    shipped = load_config(str(trees.ROOT / 'configs' / name / 'zeroshot_vitb16.py'), {})
    sets = copy.deepcopy(shipped.test_dataloader.to_dict())
    for loader in sets.values():
        loader.update(batch_size=50, num_workers=0, pin_memory=False)
        loader['dataset']['data_root'] = str(data_root)
        loader['dataset']['pipeline'][1]['image_size'] = 8
    cfg = config(sets, work_dir, dict(num_classes=num_classes), shipped.test_evaluator, id_set=shipped.test_cfg.id_set)
    return Runner.from_cfg(Config(cfg)).test()


def test_a_domain_left_out(tmp_path):
    """Who knows the answers is right everywhere; who was trained on three domains alone, in these."""
    classes = ('bird', 'car', 'chair', 'dog', 'person')
    for knows in (True, False):
        for domain in ('Caltech101', 'LabelMe', 'SUN09', 'VOC2007'):
            for label, folder in enumerate(classes):
                for number in range(10):
                    says = label if knows or domain != 'SUN09' else (label + 1) % 5
                    save(tmp_path / 'VLCS' / domain / folder / f'{number}.png', says)
        metrics = run_config('domainbed', tmp_path, tmp_path / 'w', 5)
        assert metrics['domains/top1'] == metrics['domains/group_Caltech101'] == 100.0
        assert 'domains/group_SUN09' not in metrics
        assert metrics['left_out/top1'] == metrics['ood_average/top1'] == (100.0 if knows else 0.0)


def test_celeba_by_the_sex_alone(tmp_path):
    """The average is high where most men are not blond and most women are, the worst group is 0."""
    faces = [(1, -1, 0), (-1, 1, 0), (-1, -1, 0), (1, 1, 0)]
    faces += [(1, -1, 2)] * 6 + [(-1, 1, 2)] * 6 + [(-1, -1, 2)] * 2 + [(1, 1, 2)] * 2
    trees.make_celeba(tmp_path / 'celeba', faces)
    for answer in (lambda blond, male: blond == 1, lambda blond, male: male == -1):
        for number, (blond, male, _) in enumerate(faces, start=1):
            save(tmp_path / 'celeba' / 'img_align_celeba' / f'{number:06d}.png', int(answer(blond, male)))
            (tmp_path / 'celeba' / 'img_align_celeba' / f'{number:06d}.png').rename(
                tmp_path / 'celeba' / 'img_align_celeba' / f'{number:06d}.jpg'
            )
        metrics = run_config('celeba', tmp_path, tmp_path / 'w', 2)
        groups = {
            name: value for name, value in metrics.items() if name.startswith('test/group_') and 'average' not in name
        }
        if answer(1, 1):
            assert metrics['test/worst_group'] == metrics['test/top1'] == 100.0
        else:
            assert metrics['test/worst_group'] == 0.0 and metrics['test/top1'] == 75.0
            assert groups == {
                'test/group_not_blond_female': 0.0, 'test/group_not_blond_male': 100.0,
                'test/group_blond_female': 100.0, 'test/group_blond_male': 0.0,
            }  # fmt: skip
