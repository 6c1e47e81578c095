"""A fine-tuned model for other people: what tools/publish.py runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError, MissingFileError, blame
from ..evaluation.protocol import versions
from ..files import as_path, hash_file, new_folder, write_json, write_tensors, write_text
from ..reporting.model_card import model_card
from ..reporting.runs import Run
from .checkpoints import check_checkpoint, chosen_checkpoint
from .hub import CHECKPOINT, CONFIG, METRICS, SCHEME, check_pushable, push
from .provenance import hide_machine, read_selection, read_training_settings
from .run_export import (
    PARTS,
    ExportModel,
    choose_metrics,
    describe_model,
    describe_preprocessing,
    find_metrics,
    load_export_model,
    write_model,
)

FORMATS = ('open_clip', 'hf', 'torch', 'onnx-classifier')  # of tools/export.py: their files have names of their own
OF_THE_RUN = ('work_dir', 'cache_dir', 'resume', 'launcher', 'log_level', 'visualizer')
TRACKING = ('CounterfactualPictureHook', 'TraceHook')
USAGE = """
from mmpretrain import ImageClassificationInferencer
from mmcfmask import load_model

model = load_model('FOLDER', 'FOLDER')  # from the hub: 'hf://user/name' twice
ImageClassificationInferencer(model)('photo.jpg')
"""


def run_publish(
    run: str | os.PathLike,
    *,
    to: str | os.PathLike,
    formats: Sequence[str] = (),
    metrics: str | os.PathLike | None = None,
    private: bool = False,
    show: bool = False,
) -> str:
    """Write a trained model with its config, results and a model card into a folder, or push it to the hub.

    Nothing of this machine is published: paths are shortened to their last part, and settings of trackers left out.

    Args:
        run (str): A checkpoint of a training, or its work dir: then the best checkpoint, or else the last.
        to (str): A new or empty folder, or ``hf://user/name``, a repository of the Hugging Face hub.
        formats (Sequence[str]): Other libraries to add files for, see :func:`mmcfmask.engine.run_export.run_export`:
            'open_clip', 'hf', 'torch', 'onnx-classifier'.
        metrics (str, optional): The ``metrics.json`` of the checkpoint. None: the one beside it, if it is of it.
        private (bool): Make the repository a private one.
        show (bool): Print what was written.

    Returns:
        str: The folder, or the address of the page.

    Raises:
        UserError: Something the user can mend; the message names the file or option, and what to do.
    """
    run, to, metrics = map(as_path, (run, to, metrics))
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f'--formats {name}: choose from {", ".join(FORMATS)}')
    checkpoint = find_checkpoint(run)
    if to.startswith(SCHEME):
        check_pushable(to)
    elif private:
        raise ConfigError(f'--private is for a repository of the hub, but --to {to} is a folder')
    with ExitStack() as stack:
        if to.startswith(SCHEME):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = stack.enter_context(new_folder(to, '--to'))
        tested = write_publication(folder, checkpoint, formats, metrics)
        files = sorted(path.name for path in folder.iterdir())
        where = push(folder, to, private) if to.startswith(SCHEME) else to
    if show:
        print(f'{where}: {", ".join(files)}')
        if not tested:
            print(f'The card has no results: there is no metrics.json of {checkpoint}. tools/test.py --out makes one.')
    return where


def find_checkpoint(run: str) -> str:
    """The checkpoint that ``run`` is, or that of a work dir.

    Raises:
        MissingFileError: There is none.
    """
    if not os.path.exists(run):
        raise MissingFileError(f'there is no work dir or checkpoint {run!r}')
    if not os.path.isdir(run):
        return run
    found = chosen_checkpoint(run)
    if found is None:
        raise MissingFileError(
            f'{run!r} holds no checkpoint (best*.pth or epoch_*.pth): give the work dir of a training'
        )
    return str(found)


def write_publication(folder: Path, checkpoint: str, formats: Sequence[str], metrics: str | None) -> bool:
    """Write all files of a publication; whether there are results.

    Args:
        folder (Path): Empty.
        checkpoint (str): The file.
        formats (Sequence[str]): Of :data:`FORMATS`.
        metrics (str, optional): As of :func:`run_publish`.
    """
    loaded = check_checkpoint(checkpoint)
    run = find_metrics(checkpoint, metrics)
    cfg = portable_config(loaded['meta'], checkpoint)
    meta = {**shorten_paths(loaded['meta']), 'cfg': cfg.pretty_text, 'method': name_publication(loaded['meta'], run)}
    write_text(folder / CONFIG, cfg.pretty_text)
    write_tensors(folder / CHECKPOINT, dict(meta=meta, state_dict=loaded['state_dict']))
    model = load_export_model(str(folder / CONFIG), str(folder / CHECKPOINT))
    usages = {'mmcfmask': USAGE}
    for to in formats:
        part = 'classifier' if 'classifier' in PARTS[to] and to != 'hf' else PARTS[to][0]
        usages[to] = write_model(folder, to=to, part=part, **model.files())
    sha256 = hash_file(folder / CHECKPOINT)
    if run is not None:
        content = hide_machine(run.content, Path())
        content.update(config=CONFIG, checkpoint=dict(path=CHECKPOINT, sha256=sha256))
        write_json(folder / METRICS, {**content, 'training': read_training_settings(meta)})
    write_text(folder / 'README.md', write_card(model, meta, run, usages, sha256))
    return run is not None


def portable_config(meta: Mapping[str, Any], checkpoint: str) -> Config:
    """The config in a checkpoint without what belongs to the run or the machine.

    Raises:
        ConfigError: There is none.
    """
    text = meta.get('cfg')
    if not isinstance(text, str):
        raise ConfigError(
            f'{checkpoint} holds no config, so it is not of mmcfmask train: tools/export.py takes a config'
        )
    with blame(f'{checkpoint}: its config', Exception):
        values = Config.fromstring(text, '.py').to_dict()
    values = {key: value for key, value in values.items() if key not in OF_THE_RUN}
    hooks = [hook for hook in values.get('custom_hooks') or () if hook['type'] not in TRACKING]
    return Config(shorten_paths(without_caches(dict(values, custom_hooks=hooks))))


def without_caches(part: Any) -> Any:
    """A part of a config whose data sets are read from their files."""
    if isinstance(part, dict):
        inside = part['dataset'] if part.get('type') == 'CachedDataset' else part
        return {key: without_caches(value) for key, value in inside.items()}
    return type(part)(map(without_caches, part)) if isinstance(part, (list, tuple)) else part


def shorten_paths(part: Any) -> Any:
    """A part of a config in which every absolute path is shortened to its last part."""
    if isinstance(part, dict):
        return {key: shorten_paths(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(map(shorten_paths, part))
    is_path = isinstance(part, str) and (os.path.isabs(part) or part.startswith('~'))
    return Path(part).name if is_path else part


def name_publication(meta: Mapping[str, Any], run: Run | None) -> str:
    """The method: as the results call it, or else by the config of the training."""
    if run is not None and not run.content.get('inference'):
        return run.method
    return str(meta.get('experiment_name') or 'model').rpartition('_')[0].rpartition('_')[0] or 'model'


def write_card(
    model: ExportModel, meta: Mapping[str, Any], run: Run | None, usages: Mapping[str, str], sha256: str
) -> str:
    """The model card."""
    content = {} if run is None else hide_machine(run.content, Path())
    of_test = content.get('versions') or {}
    provenance = {
        'Seed': meta.get('seed'),
        'Checkpoint chosen by': read_selection(dict(meta)),
        'SHA-256 of the weights': sha256,
        'Command of the test': content.get('command'),
        'Versions in the test': ', '.join(f'{name} {number}' for name, number in of_test.items()),
        'Published with': f'mmcfmask {versions()["mmcfmask"]}',
    }
    return model_card(
        title=meta['method'],
        about=describe_model(model.model, meta['method'], True),
        usage='\n\n'.join(f'# {name}\n{usage.strip()}' for name, usage in usages.items()),
        preprocessing=describe_preprocessing(model.preprocessing),
        training=read_training_settings(dict(meta)),
        results=None if run is None else choose_metrics(run),
        tested='' if run is None else f'Measured by `mmcfmask test`, seed {run.seed}; in percent, except nll.',
        provenance={name: str(value) for name, value in provenance.items() if value not in (None, '')},
        classes=model.classes,
        library='mmcfmask',
        task='image-classification',
    )
