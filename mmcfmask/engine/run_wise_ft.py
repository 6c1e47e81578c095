"""WiSE-FT of a checkpoint: what tools/wise_ft.py runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from rich.console import Console

from ..compat import end_process_group
from ..errors import ConfigError
from ..files import as_path
from ..reporting import summary_table
from .build import build_runner
from .checkpoints import check_state_dict, inherited_meta
from .checks import check_work_dir
from .config import load_config
from .hooks import unwrapped
from .hub import published_checkpoint
from .launcher import apply_run_arguments
from .memory import memory_explained
from .predictions import write_predictions
from .testing import prepare_test
from .wise_ft import parse_alphas
from .wise_ft_results import DEFAULT_ALPHA, TABLE, line_notes, line_summary, save_interpolated, write_results


def run_wise_ft(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    alphas: Sequence[str | float] = ('0:1:0.1',),
    save: float | None = None,
    out: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
    shifts: list[str] | None = None,
    skip_broken: bool = False,
    work_dir: str | os.PathLike | None = None,
    amp: bool = False,
    launcher: str | None = None,
    local_rank: int = 0,
    show: bool = False,
) -> dict | None:
    """Test interpolations (1 − α) θ0 + α θ1 of the pretrained and the fine-tuned weights on every test set.

    Args:
        config (str): The config file; its model without a checkpoint is θ0.
        checkpoint (str): The fine-tuned weights θ1.
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        alphas (Sequence): As of :func:`mmcfmask.engine.wise_ft.parse_alphas`.
        save (float, optional): Write the checkpoint at this α.
        out (str, optional): Folder for the table, the curve and the checkpoint. None: ``<work dir>/wise_ft``.
        predictions (str, optional): Write the predictions for all images at α = 0.5 to ``<set>.csv`` in this folder.
        shifts, skip_broken, work_dir, amp, launcher, local_rank: As of :func:`mmcfmask.engine.run_test.run_test`.
        show (bool): Print a table of accuracies.

    Returns:
        dict, optional: The contents of wise_ft.json; None on all processes but the first.

    Raises:
        UserError: Something the user can mend; the message names the file, key or value, and what to do.
    """
    config, checkpoint, out, predictions, work_dir = map(as_path, (config, checkpoint, out, predictions, work_dir))
    checkpoint = published_checkpoint(checkpoint)
    alphas = parse_alphas(alphas)
    if predictions and DEFAULT_ALPHA not in alphas:
        raise ConfigError(f'--predictions are those at α = {DEFAULT_ALPHA:g}: add it to --alphas')
    save = None if save is None else parse_alphas([save])[0]
    cfg = load_config(config, options, complete=True)
    apply_run_arguments(cfg, config, work_dir, launcher, local_rank)
    folder = Path(out or Path(cfg.work_dir) / 'wise_ft')
    check_work_dir(cfg.work_dir)
    check_work_dir(str(folder), 'folder', '--out')
    if predictions:
        check_work_dir(predictions, 'folder', '--predictions')
    loaded = prepare_test(cfg, checkpoint, shifts, skip_broken, amp, keep_pretrained=True)
    cfg.test_cfg.update(type='WiSEFTLoop', alphas=alphas, keep_predictions=predictions is not None)
    runner = build_runner(cfg)
    check_state_dict(unwrapped(runner.model), loaded, checkpoint)
    with memory_explained(cfg, unwrapped(runner.model)):
        runner.test()
    line = None
    if is_main_process():
        meta = loaded.get('meta') or {}
        results = write_results(runner.test_loop, folder, config, checkpoint, meta)
        line, written = results['line'], results['written']
        if predictions:
            loop = runner.test_loop
            written += write_predictions(Path(predictions), loop.by_alpha[DEFAULT_ALPHA], loop.loaders)
        if save is not None:
            written.append(folder / f'wise_ft_{save:g}.pth')
            meta = dict(inherited_meta(loaded), seed=meta.get('seed'), config=config, checkpoint=checkpoint)
            save_interpolated(runner.test_loop, save, written[-1], meta)
        if show:
            console = Console()
            console.print(summary_table(line_summary(line), **TABLE))
            for note in [*line_notes(line), 'written: ' + '  '.join(map(str, written))]:
                console.print(note, markup=False, highlight=False, soft_wrap=True)
    end_process_group()
    return line
