"""The processes of a job, and what the command line says of them."""

import os

import pytest
from mmengine.config import Config

from mmcfmask.engine.launcher import apply_run_arguments, world_size
from mmcfmask.errors import ConfigError


def test_processes_of_every_launcher(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert [world_size(name) for name in ('none', 'pytorch', 'slurm', 'mpi')] == [1, 1, 1, 1]
    for number, name in enumerate(('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'), start=2):
        monkeypatch.setenv(name, str(number))
    assert [world_size(name) for name in ('none', 'pytorch', 'slurm', 'mpi')] == [1, 2, 3, 4]


def test_local_rank_of_mpi_is_that_of_mpi(monkeypatch):
    for variable, value in dict(LOCAL_RANK='3', RANK='3', SIZE='4').items():
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{variable}', value)
    monkeypatch.setenv('MASTER_ADDR', 'localhost')
    for launcher, rank in (('mpi', '3'), ('none', '0')):
        monkeypatch.setenv('LOCAL_RANK', '0')
        cfg = Config(dict(work_dir='w'))
        apply_run_arguments(cfg, 'c.py', launcher=launcher)
        assert os.environ['LOCAL_RANK'] == rank


def test_launcher_and_work_dir_of_the_config_hold():
    cfg = Config(dict(launcher='none', work_dir='mine'))
    apply_run_arguments(cfg, 'configs/ft.py')
    assert (cfg.launcher, cfg.work_dir) == ('none', 'mine')
    apply_run_arguments(cfg, 'configs/ft.py', work_dir='here')
    assert cfg.work_dir == 'here'
    cfg = Config(dict(launcher='slurm'))
    with pytest.raises(ConfigError, match='slurm needs processes started by srun, but SLURM_PROCID is not set'):
        apply_run_arguments(cfg, 'configs/ft.py')
    apply_run_arguments(cfg, 'configs/ft.py', launcher='none')
    assert (cfg.launcher, cfg.work_dir) == ('none', 'work_dirs/ft')
