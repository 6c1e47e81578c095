"""Runs the commands of a study as jobs of a SLURM cluster, by submitit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingPackageError, first_line
from ..files import write_text
from .jobs import Command


class RunCommand:
    """What a SLURM job runs: one command, whose output is appended to its log.

    Args:
        arguments (list[str]): A script and its arguments, without the interpreter.
        log (str): Where the output goes.
    """

    def __init__(self, arguments: list[str], log: str) -> None:
        self.arguments = arguments
        self.log = log
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        with open(self.log, 'ab') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-u', *self.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            return self.process.wait()

    def checkpoint(self) -> Any:
        """End the command. SLURM requeues the same one after a preemption or a timeout; a training resumes."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        return DelayedSubmission(RunCommand(self.arguments, self.log))


class SlurmExecutor:
    """Submits commands as SLURM jobs, ``slots`` at once; see :class:`.jobs.Executor`.

    Every command of a run (its training, its test) is a job of its own. A job that is preempted, or reaches its time
    limit, is requeued and resumes. The study's process only waits. If it ends, its jobs are cancelled; if it is
    killed, they go on, and the same call of the study waits for them again.

    Args:
        slots (int): Number of jobs at once.
        folder (Path): Where submitit keeps its files; on a file system that all machines share.
        resources (Mapping): Options of submitit, such as ``slurm_partition``, ``gpus_per_node``, ``cpus_per_task``,
            ``mem_gb``, ``timeout_min``.
        cluster (str): 'slurm', or 'local': processes on this machine, to try it.

    Raises:
        MissingPackageError: submitit is not installed.
        ConfigError: An unknown resource, or no SLURM on this machine.
    """

    def __init__(
        self, slots: int, folder: Path, resources: Mapping[str, Any] | None = None, cluster: str = 'slurm'
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise MissingPackageError("--executor slurm needs submitit: pip install 'mmcfmask[slurm]'") from error
        self.slots = slots
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster)
            self.executor.update_parameters(name='mmcfmask', **(resources or {}))
        except RuntimeError as error:  # no sbatch
            raise ConfigError(f'--executor slurm: {first_line(error)}') from error
        except (NameError, TypeError, AssertionError) as error:
            raise ConfigError(f'slurm: {first_line(error)}') from error

    def start(self, command: Command, slot: int) -> SlurmProcess:
        """Submit a command, unless it is still at work since the study was killed."""
        ticket = command.log.with_suffix('.slurm')
        job = self._find(ticket)
        if job is None:
            job = self.executor.submit(RunCommand(command.arguments, str(command.log)))
            write_text(ticket, job.job_id)
        return SlurmProcess(job, ticket, command.log)

    def _find(self, ticket: Path) -> Any:
        """The job that a ticket names, if it has not ended."""
        number = ticket.read_text(encoding='utf-8').strip() if ticket.is_file() else ''
        if not re.fullmatch(r'\w+', number):
            return None
        job = self.executor._executor.job_class(self.executor.folder, number)
        return None if job.done(force_check=True) else job


class SlurmProcess:
    """A submitted command; see :class:`.jobs.Process`."""

    def __init__(self, job: Any, ticket: Path, log: Path) -> None:
        self.job = job
        self.ticket = ticket
        self.log = log
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the job waits or runs."""
        if self.code is None and self.job.done():
            self.code = self._result()
            self.ticket.unlink(missing_ok=True)
        return self.code

    def _result(self) -> int:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return self.job.result()
        except (FailedJobError, UncompletedJobError) as error:  # cancelled, out of memory, or the machine failed
            with self.log.open('a', encoding='utf-8') as log:
                log.write(f'SLURM job {self.job.job_id}: {self.job.state}. {first_line(error)}\n')
            return 1

    def stop(self) -> None:
        """Cancel the job."""
        if self.poll() is None:
            self.job.cancel()
            self.ticket.unlink(missing_ok=True)
