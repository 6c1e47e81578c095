"""A label means the same class in all data sets and in the head."""

from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS
from trees import make_tree

from mmcfmask.engine.checks.classes import CheckClassesHook
from mmcfmask.errors import ConfigError


def folders(root, *names, kind='FolderDataset', **settings):
    """A loader of class folders, which are made."""
    make_tree(root, [name for name in names if not (root / name).exists()], ('{folder}.jpg',))
    return SimpleNamespace(dataset=DATASETS.build(dict(type=kind, data_root=str(root), **settings)))


def runner(train=None, tests=None, prompts=None, images=None, resumed=False, losses=()):
    start = dict(classnames=prompts) if prompts else dict(dataset=images) if images else None
    sets = [loader for loader in (train, *(tests or {}).values()) if loader]
    head = SimpleNamespace(num_classes=len(sets[0].dataset.metainfo['classes']), class_weights=start)
    return SimpleNamespace(
        model=SimpleNamespace(head=head, losses=losses),
        iter=int(resumed),
        train_dataloader=train,
        val_loop=None,
        test_loop=SimpleNamespace(loaders=tests),
    )


def check(runner, trained=None):
    """As a test does, of a checkpoint that records the metainfo ``trained``."""
    hook = CheckClassesHook()
    assert isinstance(hook, Hook)
    if trained:
        hook.after_load_checkpoint(
            runner, dict(meta=dict(dataset_meta={key: list(value) for key, value in trained.items() if value}))
        )
    hook.before_test(runner)


def test_folders_of_a_test_are_those_that_were_trained(tmp_path):
    trained = folders(tmp_path / 'train', 'cat', 'dog', 'emu').dataset.metainfo
    same = folders(tmp_path / 'same', 'cat', 'dog', 'emu')
    other = folders(tmp_path / 'other', 'ape', 'cat', 'dog')
    check(runner(tests=dict(mine=same)), trained)
    with pytest.raises(
        ConfigError,
        match=r"class 0 is the folder 'ape' in the dataset of test_dataloader\['mine'\], but 'cat' in the "
        r"training set of the checkpoint.*FolderShiftDataset', head_classes=\['cat', 'dog', 'emu'\]",
    ):
        check(runner(tests=dict(mine=other)), trained)
    check(runner(tests=dict(mine=other)))  # without a checkpoint, nothing is known
    # What the message proposes works.
    matched = folders(
        tmp_path / 'other', kind='FolderShiftDataset', head_classes=['cat', 'dog', 'emu'], folder_map=dict(ape='emu')
    )
    assert (
        matched.dataset.metainfo['classes'] == ('cat', 'dog', 'emu')
        and matched.dataset.get_data_info(2)['gt_label'] == 2
    )
    check(runner(tests=dict(mine=matched)), trained)
    listed = folders(tmp_path / 'other', folders=['cat', 'dog', 'ape'], classes=['cat', 'dog', 'emu'])
    check(runner(tests=dict(mine=listed)), trained)


def test_order_and_case_of_the_folders(tmp_path):
    trained = folders(tmp_path / 'train', 'Bird', 'cat', 'Dog').dataset.metainfo
    assert trained['folders'] == ('Bird', 'Dog', 'cat')  # as text is sorted
    with pytest.raises(ConfigError, match="class 1 is the folder 'cat' .*, but 'Dog' in"):
        check(runner(tests=dict(mine=folders(tmp_path / 'lower', 'bird', 'cat', 'dog'))), trained)
    check(
        runner(
            tests=dict(
                mine=folders(
                    tmp_path / 'same_order',
                    'bird',
                    'dog',
                    'eel',
                    folders=['bird', 'dog', 'eel'],
                    classes=['bird', 'dog', 'cat'],
                )
            )
        ),
        trained,
    )


def test_checkpoint_whose_numbers_were_sorted_as_text(tmp_path):
    """That of version 0.1.0."""
    names = [str(number) for number in range(12)]
    with pytest.raises(
        ConfigError, match="class 2 is the folder '2' .*, but '10' in the training set of the checkpoint"
    ):
        check(
            runner(tests=dict(mine=folders(tmp_path / 'set', *names))),
            dict(folders=sorted(names), classes=sorted(names)),
        )
    listed = folders(tmp_path / 'set', folders=sorted(names))
    check(runner(tests=dict(mine=listed)), dict(folders=sorted(names), classes=sorted(names)))


def test_imagenet_by_its_ids_and_names(tmp_path):
    """Sets with the names of the classes, and those with the WordNet ids, in one test."""
    from mmcfmask.datasets.imagenet_shifts import IMAGENET_WNIDS, ImageNetDataset, ImageNetV2Dataset

    trained = ImageNetDataset.METAINFO
    own = folders(tmp_path / 'sketch', *IMAGENET_WNIDS)
    v2 = SimpleNamespace(dataset=SimpleNamespace(metainfo=ImageNetV2Dataset.METAINFO))
    check(runner(tests=dict(own=own, v2=v2)), trained)
    shuffled = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=sorted(trained['classes']))))
    with pytest.raises(ConfigError, match="class 0 is .*, but 'tench' in"):
        check(runner(tests=dict(own=shuffled)), trained)


@pytest.mark.parametrize(
    'prompts, message',
    [
        (
            ['dog', 'cat', 'emu'],
            "model.head.class_weights.classnames has 'cat' in place 1, but it has the label 0 in the dataset of test_",
        ),
        (['a dog', 'Sea_Lion', 'CAT'], "has 'cat' in place 2, but it has the label 0"),
        (['Katze', 'Hund', 'Emu'], None),
        (['cat', 'hound', 'sea lion'], None),
    ],
)
def test_prompts_in_another_order(tmp_path, prompts, message):
    tests = dict(mine=folders(tmp_path / 'set', 'cat', 'dog', 'sea-lion'))
    path = tmp_path / 'prompts.txt'
    path.write_text('\n'.join(prompts))
    for given in (prompts, str(path)):
        if message:
            with pytest.raises(ConfigError, match=message):
                check(runner(tests=tests, prompts=given))
        else:
            check(runner(tests=tests, prompts=given))


def test_prompts_of_loss_terms(tmp_path):
    train = folders(tmp_path / 'set', 'cat', 'dog')
    for names in (['cat', 'dog'], None):
        CheckClassesHook().before_train(runner(train, losses=[SimpleNamespace(classnames=names)]))
    with pytest.raises(ConfigError, match="model.losses .*classnames has 'cat' in place 1"):
        CheckClassesHook().before_train(runner(train, losses=[SimpleNamespace(classnames=['dog', 'cat'])]))


def test_images_that_the_model_is_made_of(tmp_path):
    train = folders(tmp_path / 'train', 'cat', 'dog')
    images = dict(type='FolderDataset', data_root=str(tmp_path / 'others'), pipeline=[dict(type='PackInputs')])
    folders(tmp_path / 'others', 'ape', 'cat')
    own = dict(images, data_root=str(tmp_path / 'train'))
    message = (
        "class 0 is the folder 'cat' in the dataset of train_dataloader, but 'ape' in the images that the model is "
        r'made of \({}\)'
    )
    with pytest.raises(ConfigError, match=message.format('model.head.class_weights.dataset')):
        CheckClassesHook().before_train(runner(train, images=images))
    CheckClassesHook().before_train(runner(train, images=own))
    for key in ('dataset', 'held_out'):
        case = runner(train, images=own)
        case.model.knn_gate = SimpleNamespace(**{'dataset': own, 'held_out': own, key: images})
        with pytest.raises(ConfigError, match=message.format(f'model.knn_gate.{key}')):
            CheckClassesHook().before_train(case)
    case = runner(train, images=own)
    case.model.head.class_weights['held_out'] = images
    with pytest.raises(ConfigError, match=message.format('model.head.class_weights.held_out')):
        CheckClassesHook().before_train(case)


def test_training_labels_are_rows_of_the_head(tmp_path):
    some = folders(tmp_path / 'some', 'cat', 'dog', kind='FolderShiftDataset', head_classes=['ape', 'cat', 'dog'])
    case = runner(some)
    case.model.head.num_classes = 3
    with pytest.raises(ConfigError, match='the training set has only some of the classes of the head'):
        CheckClassesHook().before_train(case)


def test_resumed_runs_keep_their_classes(tmp_path):
    train, hook = folders(tmp_path / 'train', 'cat', 'dog'), CheckClassesHook()
    before = dict(meta=dict(dataset_meta=dict(folders=['ape', 'cat'], classes=['ape', 'cat'])))
    hook.after_load_checkpoint(None, before)
    hook.before_train(runner(train))  # weights to start from may be of other classes
    hook.after_load_checkpoint(None, before)
    with pytest.raises(
        ConfigError,
        match="class 0 is the folder 'cat' in the dataset of train_dataloader, but 'ape' in the training set",
    ):
        hook.before_train(runner(train, resumed=True))


def test_images_of_the_head_in_a_wrapper(tmp_path):
    folders(tmp_path / 'other', 'ape', 'cat', 'dog')
    images = dict(type='FolderDataset', data_root=str(tmp_path / 'other'))
    for wrapped in (images, dict(type='ClassBalancedDataset', oversample_thr=0.5, dataset=images)):
        with pytest.raises(ConfigError, match="class 0 is the folder 'cat' .*, but 'ape' in the images that the model"):
            check(runner(tests=dict(mine=folders(tmp_path / 'set', 'cat', 'dog', 'emu')), images=wrapped))
