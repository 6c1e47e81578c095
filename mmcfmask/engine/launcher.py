"""The processes of a job: which launcher started them, how many there are, and where they write."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError

# Variables of the environment that mmengine needs from a launcher.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'),
)
COMMANDS = dict(pytorch='torchrun (tools/dist_train.sh)', slurm='srun', mpi='mpirun')


def apply_run_arguments(
    cfg: Config, config: str, work_dir: str | None = None, launcher: str | None = None, local_rank: int = 0
) -> None:
    """Set the launcher and the work dir of a config, in place.

    Args:
        cfg (Config): The config.
        config (str): Path of the config, which names the default work dir.
        work_dir (str, optional): None: the one of the config, or ``work_dirs/<config name>``.
        launcher (str, optional): None: the one of the config, or 'none'.
        local_rank (int): The GPU of this process, unless the environment names it.

    Raises:
        ConfigError: The launcher did not start this process.
    """
    launcher = launcher or cfg.get('launcher') or 'none'
    check_launcher(launcher)
    if launcher == 'mpi':  # the Runner puts the model on the GPU of this number
        os.environ['LOCAL_RANK'] = os.environ['OMPI_COMM_WORLD_LOCAL_RANK']
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config).stem)


def check_launcher(launcher: str) -> None:
    """Raise a ConfigError for an unknown launcher, or one that did not start this process."""
    if launcher not in ('none', *LAUNCHERS):
        raise ConfigError(f'launcher={launcher!r}: choose none, {", ".join(LAUNCHERS)}')
    for variable in LAUNCHERS.get(launcher, ()):
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(
                f'launcher {launcher} needs processes started by {COMMANDS[launcher]}, but {variable} is not set. '
                'For a single process leave --launcher out'
            )
        if variable.endswith(('RANK', 'SIZE', 'PORT', 'PROCID', 'NTASKS')) and not value.isdecimal():
            raise ConfigError(f'launcher {launcher}: {variable}={value!r} is not a number')


def world_size(launcher: str) -> int:
    """The number of processes of this job, before a process group exists."""
    if launcher == 'none':
        return 1
    return int(os.environ.get(dict(slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE').get(launcher, 'WORLD_SIZE'), 1))


def is_first_process(launcher: str) -> bool:
    """Whether this is the process that writes files, before a process group exists."""
    if launcher == 'none':
        return True
    return int(os.environ.get(dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher, 'RANK'), 0)) == 0
