"""Check that a label means the same class in all data sets and in the head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS, HOOKS
from torch.utils.data import DataLoader

from ...datasets import FolderDataset, FolderShiftDataset
from ...datasets.names import first_difference, plain_name
from ...datasets.wrappers import inner_configs
from ...errors import ConfigError
from ...evaluation.accuracy import check_groups
from ...models.class_embeddings.text import resolve_classnames
from ..hooks import unwrapped


@HOOKS.register_module()
class CheckClassesHook(Hook):
    """Check before the first batch that every data set has the classes of the head, in its order, or says in
    ``metainfo['label_groups']`` which outputs of the head mean its classes. This covers all sets of a
    :class:`MultiSetTestLoop` or :class:`MultiSetValLoop`.

    The head has the classes of the training set, which a checkpoint records, or the classes of the prompts or images
    that its first weights are made of.

    Raises:
        ConfigError: Another number of classes, groups that do not fit, a class with another label than in the head or
            the training set, or two sets labelled by the order of their folders, with different folder names.
    """

    def __init__(self) -> None:
        self.trained: dict = {}  # metainfo of the training set

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Remember the classes that were trained."""
        self.trained = (checkpoint.get('meta') or {}).get('dataset_meta') or {}

    def before_train(self, runner) -> None:
        """Check the training and the validation sets, in a resumed run also against its classes so far."""
        if not runner.iter:  # the first weights may come from a model of other classes
            self.trained = {}
        self._check_all(
            runner, {'train_dataloader': runner.train_dataloader, **self._loaders('val_dataloader', runner.val_loop)}
        )
        self.trained = read_metainfo(runner.train_dataloader)
        if self.trained.get('label_groups') is not None:
            raise ConfigError(
                'the training set has only some of the classes of the head, or groups of them (label_groups), so that '
                'its labels are no rows of the head: train on a FolderDataset with a folder for each class'
            )

    def before_test(self, runner) -> None:
        """Check the test sets."""
        self._check_all(runner, self._loaders('test_dataloader', runner.test_loop))

    def check_validation(self, runner, trained: dict) -> None:
        """Check the validation sets of a run without training against the metainfo of a training set."""
        self.trained = trained
        self._check_all(runner, self._loaders('val_dataloader', runner.val_loop))

    @staticmethod
    def _loaders(name: str, loop) -> dict[str, DataLoader]:
        if loop is None:
            return {}
        if hasattr(loop, 'loaders'):
            return {f'{name}[{part!r}]': loader for part, loader in loop.loaders.items()}
        return {name: loop.dataloader}

    def _check_all(self, runner, loaders: dict[str, DataLoader]) -> None:
        model = unwrapped(runner.model)
        head = getattr(model, 'head', None)
        class_weights = getattr(head, 'class_weights', None) or {}
        parts = {
            'model.head.class_weights.dataset': class_weights.get('dataset'),
            'model.head.class_weights.held_out': class_weights.get('held_out'),
        }
        gate = getattr(model, 'knn_gate', None)
        if gate is not None:
            parts.update({f'model.knn_gate.{key}': getattr(gate, key, None) for key in ('dataset', 'held_out')})
        sources = {key: read_folder_metainfo(part) for key, part in parts.items()}
        first = None  # the first set labelled by the order of its folders
        for name, loader in loaders.items():
            metainfo = read_metainfo(loader)
            if metainfo.get('class_weights'):  # it has classes and class embeddings of its own
                continue
            check_number_of_classes(name, metainfo, getattr(head, 'num_classes', None))
            if metainfo.get('label_groups') is not None:
                continue
            check_prompts(name, metainfo, class_weights.get('classnames'), 'model.head.class_weights')
            for term in getattr(model, 'losses', None) or ():
                check_prompts(
                    name,
                    metainfo,
                    getattr(term, 'classnames', None),
                    f'model.losses ({type(term).__name__})',
                )
            for key, images in sources.items():
                check_labels(name, metainfo, f'the images that the model is made of ({key})', images)
            check_labels(name, metainfo, 'the training set of the checkpoint', self.trained)
            if metainfo.get('folders'):
                first = first or (name, metainfo)
                check_labels(name, metainfo, *first)


def read_metainfo(loader: DataLoader) -> dict:
    """Return the metainfo of the data set of a loader."""
    return getattr(loader.dataset, 'metainfo', None) or {}


def read_folder_metainfo(dataset: dict | None) -> dict:
    """Return the metainfo of the config of a :class:`FolderDataset`, without listing its images; else an empty dict."""
    dataset = next(inner_configs(dataset or {}), None)  # the classes of a wrapper are those of its first set
    kind = DATASETS.get(dataset['type']) if dataset and isinstance(dataset.get('type'), str) else None
    if (
        not isinstance(kind, type)
        or not issubclass(kind, FolderDataset)
        or kind.class_images is FolderShiftDataset.class_images
    ):
        return {}
    built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    if not built.metainfo.get('classes'):
        built.name_classes(Path(built.img_prefix))
    return built.metainfo


def check_number_of_classes(name: str, metainfo: dict, num_classes: int | None) -> None:
    """Raise a ConfigError unless a data set has as many classes as the head, or groups of its outputs.

    Args:
        name (str): Key of the data set, for errors.
        metainfo (dict): Of the data set.
        num_classes (int, optional): Of the head.
    """
    classes, groups = metainfo.get('classes'), metainfo.get('label_groups')
    if classes is None or num_classes is None:
        return
    if groups is not None:
        if len(groups) != len(classes):
            raise ConfigError(f'the dataset of {name} has {len(classes)} classes, but {len(groups)} label_groups')
        try:
            check_groups(groups, num_classes)
        except ValueError as error:
            raise ConfigError(
                f'the dataset of {name} does not fit model.head.num_classes={num_classes}: {error}'
            ) from None
    elif len(classes) != num_classes:
        raise ConfigError(
            f'the dataset of {name} has {len(classes)} classes ({", ".join(map(str, classes[:5]))}, …), but '
            f'model.head.num_classes={num_classes}. For a test set with some of the classes use a FolderShiftDataset, '
            'which matches folders by name'
        )


def check_prompts(name: str, metainfo: dict, prompts: str | Sequence[str] | None, where: str) -> None:
    """Raise a ConfigError if a class name has another place in the prompts than in a data set.

    Args:
        name (str): Key of the data set, for errors.
        metainfo (dict): Of the data set.
        prompts: The class names of the prompts.
        where (str): Key of the prompts.
    """
    classes = metainfo.get('classes')
    if not prompts or not classes:
        return
    rows = defaultdict(list)
    for row, prompt in enumerate(map(plain_name, resolve_classnames(prompts))):
        rows[prompt].append(row)
    for label, found in enumerate(str(found) for found in classes):
        if label not in rows.get(plain_name(found), [label]):
            raise ConfigError(
                f'{where}.classnames has {found!r} in place {rows[plain_name(found)][0]}, but it has the label {label} '
                f'in the dataset of {name} ({", ".join(map(str, classes[:5]))}, …), so classes would be swapped. Give '
                'classnames in the order of the labels, or use a FolderShiftDataset, which matches by name'
            )


def check_labels(name: str, metainfo: dict, where: str, trained: dict) -> None:
    """Raise a ConfigError if a label means different classes in two data sets. Compares the names of folders if these
    define the labels of both, else the names of classes.

    Args:
        name (str): Key of a data set, for errors.
        metainfo (dict): Of the data set.
        where (str): Name of the other data set.
        trained (dict): Its metainfo.
    """
    key, what = ('folders', 'the folder ') if metainfo.get('folders') and trained.get('folders') else ('classes', '')
    ours, theirs = ([str(name) for name in info.get(key) or ()] for info in (metainfo, trained))
    label = first_difference(ours, theirs) if ours and theirs else None
    if label is None:
        return
    ours, theirs = (repr(names[label]) if label < len(names) else 'nothing' for names in (ours, theirs))
    known = [str(name) for name in trained.get('classes') or trained['folders']]
    raise ConfigError(
        f'class {label} is {what}{ours} in the dataset of {name}, but {theirs} in {where}: its images would count as '
        "another class. Match its folders by name, with type='FolderShiftDataset', head_classes="
        f'[{", ".join(map(repr, known[:5]))}{", …" if len(known) > 5 else ""}] and, for other names, folder_map; or, '
        'if only the names differ, give the folders in the order of the labels (folders=[…]) and the same classes=[…]'
    )
