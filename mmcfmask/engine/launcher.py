"""The job launcher, the processes it starts, and the arguments that every run has."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError
from .options import add_cfg_options, file_name


def add_run_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'where logs go', amp: str = 'bfloat16 autocast'
) -> None:
    """Arguments of every tool that builds a Runner; ``work_dir`` and ``amp`` are what their help says. See
    :func:`apply_run_arguments`."""
    parser.add_argument('--work-dir', type=file_name, help=f'{work_dir} (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help=amp)
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], help='job launcher (default: of the config, or none)'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def apply_run_arguments(
    cfg: Config, config: str, work_dir: str | None = None, launcher: str | None = None, local_rank: int = 0
) -> None:
    """Set the launcher and the work dir of a config, in place.

    Args:
        cfg (Config): The config.
        config (str): Its path, after which the default work dir is named.
        work_dir (str, optional): None: that of the config, or ``work_dirs/<config name>``.
        launcher (str, optional): None: that of the config, or 'none'.
        local_rank (int): The GPU of this process, unless the environment says so.

    Raises:
        ConfigError: The launcher did not start this process.
    """
    launcher = launcher or cfg.get('launcher') or 'none'
    check_launcher(launcher)
    if launcher == 'mpi' and 'OMPI_COMM_WORLD_LOCAL_RANK' in os.environ:
        os.environ['LOCAL_RANK'] = os.environ[
            'OMPI_COMM_WORLD_LOCAL_RANK'
        ]  # the Runner wraps the model for the GPU of this name
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config).stem)


# What mmengine reads of the environment that a launcher sets.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'),
)


def check_launcher(launcher: str) -> None:
    """Raise a ConfigError for a launcher that this process was not started by."""
    starters = dict(pytorch='torchrun (tools/dist_train.sh)', slurm='srun', mpi='mpirun')
    for variable in LAUNCHERS.get(launcher, ()):
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(
                f'--launcher {launcher} is for processes that {starters[launcher]} starts, but {variable} is not set: '
                'leave it out for a single process'
            )
        if variable.endswith(('RANK', 'SIZE', 'PORT', 'PROCID', 'NTASKS')) and not value.isdecimal():
            raise ConfigError(f'--launcher {launcher}: {variable}={value!r} is not a number')


def world_size(launcher: str) -> int:
    """Number of processes of this job, before any process group exists."""
    if launcher == 'none':
        return 1
    return int(os.environ.get(dict(slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE').get(launcher, 'WORLD_SIZE'), 1))


def is_first_process(launcher: str) -> bool:
    """Whether this process is the one of its job that writes, before any process group exists."""
    return (
        launcher == 'none'
        or int(os.environ.get(dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher, 'RANK'), 0)) == 0
    )
