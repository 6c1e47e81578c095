"""Runs in processes of their own that die at a write point: before anything of a file is written, in the middle of it,
or after it took its place. Every file is written by ``mmcfmask.files.atomic_write``, so by one ``os.fsync`` and one
``os.replace``."""

import importlib
import multiprocessing
import os
import signal
from pathlib import Path

from processes import rank_environments

WHEN = ('before', 'middle', 'after')


def counts(path):
    """Whether a file is one of a run. What the processes of a machine share is written by any of them."""
    return str(path).endswith('.part') and not Path(path).parent.name.startswith('mmcfmask-')


def install(kill, log):
    """Count the files that this process writes in ``log``, and die at one of them.

    Args:
        kill (tuple, optional): Number of the file, from 0, and one of ``WHEN``.
        log (Path): Gets the name of every file.
    """
    fsync, replace, seen = os.fsync, os.replace, []

    def due(when):
        return kill is not None and kill == (len(seen) - 1, when)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(descriptor):
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        if counts(path):
            seen.append(path)
            for when, size in (('before', 0), ('middle', os.fstat(descriptor).st_size // 2)):
                if due(when):
                    os.ftruncate(descriptor, size)
                    die()
        fsync(descriptor)

    def counted_replace(source, target, **kwargs):
        replace(source, target, **kwargs)
        if counts(source):
            with open(log, 'a') as file:
                file.write(f'{Path(target).name}\n')
            if due('after'):
                die()

    os.fsync, os.replace = counted_fsync, counted_replace


def child(target, args, kill, log, environment):
    os.environ.update(environment)
    output = os.open(f'{log}.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if environment.get('RANK', '0') == '0':
        install(kill, log)
    module, name = target
    getattr(importlib.import_module(module), name)(*args)


def run(target, *args, log, kill=None, processes=1, dies=False):
    """Call a function of a test module, by their names, in one or more new processes; the first of them may be killed.

    Args:
        target (tuple[str, str]): The module and the function.
        *args: Its arguments.
        log (Path): Where to note the files; the output goes beside it.
        kill (tuple, optional): As of :func:`install`.
        processes (int): A process group of so many.
        dies (bool): It kills itself.

    Returns:
        list[str]: Names of the files written, in order.

    Raises:
        AssertionError: It failed, or was not killed where it should have been; with its output.
    """
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    context = multiprocessing.get_context('forkserver')  # imports once
    context.set_forkserver_preload(['mmcfmask'])
    log = Path(log)
    log.unlink(missing_ok=True)
    started = []
    for rank, environment in enumerate(rank_environments(processes) if processes > 1 else [{}]):
        path = log if rank == 0 else Path(f'{log}-{rank}')
        started.append(context.Process(target=child, args=(target, args, kill, path, environment)))
        started[-1].start()
    started[0].join(600)
    for process in started[1:]:
        if kill is not None:  # as a launcher does
            process.kill()
        process.join(600)
    expected = -signal.SIGKILL if kill or dies else 0
    assert started[0].exitcode == expected, (started[0].exitcode, Path(f'{log}.txt').read_text()[-3000:])
    assert kill or dies or all(process.exitcode == 0 for process in started)
    return log.read_text().splitlines() if log.exists() else []
