"""A test on several sets: what tools/test.py runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from rich.console import Console

from ..compat import end_process_group
from ..errors import ConfigError, StorageError
from ..evaluation import describe_checkpoint, describe_run, list_notes
from ..files import as_path, write_json
from ..reporting import summarize, summary_table
from ..reporting.groups import add_group_columns, sets_with_groups
from .build import build_runner
from .checkpoints import check_state_dict
from .checks import check_config, check_out, check_work_dir
from .checks.model import warn_of_random_weights
from .config import load_config
from .hooks import unwrapped
from .hub import published_checkpoint
from .launcher import apply_run_arguments
from .memory import memory_explained
from .predictions import write_predictions
from .provenance import read_command, read_selection, read_training_settings
from .testing import add_gate, add_relevance_crop, gate_kind, name_method, prepare_test


def run_test(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    shifts: list[str] | None = None,
    knn_gate: bool = False,
    vrf: bool = False,
    crop_scale: float | None = None,
    skip_broken: bool = False,
    out: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    work_dir: str | os.PathLike | None = None,
    amp: bool = False,
    launcher: str | None = None,
    local_rank: int = 0,
    show: bool = False,
) -> dict | None:
    """Test a model on the ID set and the shifts of a config.

    Args:
        config (str): The config file.
        checkpoint (str, optional): The file to test. None: the pretrained weights (zero-shot).
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        shifts (list[str], optional): Test on these shifts and the ID set; a missing one is an error. None: the
            shifts of the config, without missing ones.
        knn_gate (bool): Let zero-shot CLIP answer for images unlike the training images (``model.knn_gate``).
        vrf (bool): Mix the answers of the fine-tuned model and zero-shot CLIP (``model.knn_gate``, of the type VRF).
        crop_scale (float, optional): Also predict from the relevant part of an image, of this scale
            (``model.crop_scale``).
        skip_broken (bool): Leave out images that cannot be read, and count them.
        out (str, optional): Write metrics and protocol to this JSON file.
        predictions (str, optional): Write the predictions for all images to ``<set>.csv`` in this folder.
        work_dir (str, optional): Folder for logs. None: the value of the config, or ``work_dirs/<config name>``.
        amp (bool): bfloat16 autocast.
        launcher (str, optional): None: the value of the config, or 'none'.
        local_rank (int): The GPU of this process, unless the environment says so.
        show (bool): Print a table of accuracies.

    Returns:
        dict, optional: The contents of metrics.json; None on all processes but the first.

    Raises:
        UserError: Something the user can mend; the message names the file, key or value, and what to do.
    """
    config, checkpoint, out, predictions, work_dir = map(as_path, (config, checkpoint, out, predictions, work_dir))
    checkpoint = published_checkpoint(checkpoint, config)
    if knn_gate and vrf:
        raise ConfigError('a test has a k-NN gate or VRF, not both: leave out --knn-gate or --vrf')
    if vrf:  # options of model.knn_gate are then those of VRF
        key = 'model.knn_gate.type'
        options = {**options, key: 'VRF'} if isinstance(options, Mapping) else [*options, f'{key}=VRF']
    cfg = load_config(config, options, complete=not (knn_gate or vrf))
    if knn_gate or vrf:  # options may hold a part of its settings
        add_gate(cfg, 'VRF' if vrf else 'KNNGate')
        check_config(cfg, complete=True)
    if crop_scale is not None:
        add_relevance_crop(cfg, crop_scale)
    apply_run_arguments(cfg, config, work_dir, launcher, local_rank)
    check_work_dir(cfg.work_dir)
    if out:
        check_out(out)
    if predictions:
        check_work_dir(predictions, 'folder', '--predictions')
    loaded = prepare_test(cfg, checkpoint, shifts, skip_broken, amp)
    cfg.test_cfg.keep_predictions = predictions is not None
    runner = build_runner(cfg)
    if loaded:
        check_state_dict(unwrapped(runner.model), loaded, checkpoint)
    else:
        warn_of_random_weights(cfg)
    with memory_explained(cfg, unwrapped(runner.model)):
        runner.test()
    run = None
    if is_main_process():
        run = _describe(runner, cfg, config, checkpoint, loaded)
        try:
            written = _write(run, runner.test_loop, out, predictions)
        except StorageError:
            if show:  # the result of the test is not lost
                print_results(run)
            raise
        if show:
            print_results(run, written)
    end_process_group()
    return run


def _describe(runner, cfg, config: str, checkpoint: str | None, loaded: dict | None) -> dict:
    """Return what metrics.json holds."""
    meta = (loaded or {}).get('meta') or {}
    run = describe_run(
        runner.test_loop,
        config,
        describe_checkpoint(checkpoint),
        meta.get('seed'),
        unwrapped(runner.model).data_preprocessor,
        method=name_method(config, cfg.model, loaded),
        training=read_training_settings(meta),
        selected_by=read_selection(meta),
        command=read_command(),
    )
    run.update({key: meta[key] for key in ('wise_ft_alpha', 'soup') if meta.get(key) is not None})
    gate = cfg.model.get('knn_gate')
    if gate or cfg.model.get('crop_scale'):
        vrf = bool(gate) and gate_kind(gate) == 'VRF'
        run['inference'] = dict(knn_gate=bool(gate) and not vrf, crop_scale=cfg.model.get('crop_scale'))
        run['inference'].update(dict(vrf=True) if vrf else {})
    return run


def _write(run: dict, loop: Any, out: str | None, predictions: str | None) -> list[str | Path]:
    """Write what was asked for; returns the paths."""
    written: list[str | Path] = []
    if out:
        write_json(out, run)
        written.append(out)
    if predictions:
        written += write_predictions(Path(predictions), loop.results, loop.loaders)
    return written


def print_results(run: dict, written: Sequence[str | Path] = ()) -> None:
    """Print the accuracies of a test as a table, with notes and the names of written files.

    Args:
        run (dict): The contents of metrics.json.
        written (Sequence): Paths.
    """
    accuracies = {name: part['metrics']['top1'] for name, part in run['sets'].items() if 'top1' in part['metrics']}
    notes, console = [], Console()
    if accuracies:
        id_set = run['id_set'] if run['id_set'] in accuracies else None
        metrics = {name: part['metrics'] for name, part in run['sets'].items()}
        apart = sets_with_groups([metrics], run['id_set'])
        shifts = [name for name in accuracies if name not in (run['id_set'], *apart)]
        table = summarize({run['method']: accuracies}, id_set, shifts, apart=apart)
        console.print(summary_table(add_group_columns(table, {run['method']: [metrics]})))
        notes = [f'checkpoint: {(run["checkpoint"] or {}).get("path", "none")}', *list_notes(run)]
    if written:
        notes.append(f'written: {"  ".join(map(str, written))}')
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
