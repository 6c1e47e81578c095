"""Scripts in forks of a process that has imported the package, which takes a new process many seconds.

What a user sees of a new process (imports, their warnings, launchers) is tested apart, in test_tools/test_scripts.py.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from processes import rank_environments

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['mmcfmask', 'mmcfmask.engine.run_training', 'mmcfmask.engine.run_test'])


def run_script(script, *arguments, cwd=ROOT, timeout=300):
    """``python script arguments``; gives a subprocess.CompletedProcess with texts."""
    return _run([str(script), *map(str, arguments)], [{}], cwd, timeout)


def launch(script, processes, *arguments, timeout=300):
    """The same as several processes of one machine, as a launcher starts them. Their output is joined, and the exit
    code is that of the first one that fails."""
    ranks = [dict(environment, OMP_NUM_THREADS='1') for environment in rank_environments(processes)]
    return _run([str(script), *map(str, arguments)], ranks, ROOT, timeout)


def _run(argv, environments, cwd, timeout):
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ('stdout', 'stderr')]
        for path in outputs:
            path.touch()
        running = [
            SERVER.Process(target=_work, args=(argv, {**os.environ, **env}, str(cwd), *map(str, outputs)))
            for env in environments
        ]
        for process in running:
            process.start()
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in running):
            if time.monotonic() > deadline or any(process.exitcode for process in running):
                for process in running:
                    process.kill()
            time.sleep(0.02)
        code = next((process.exitcode for process in running if process.exitcode not in (0, -9)), None)
        code = max((abs(process.exitcode) for process in running), default=0) if code is None else code
        return subprocess.CompletedProcess(argv, code, *(path.read_text() for path in outputs))


def _work(argv, env, cwd, out, err):
    """What a new interpreter does, from its arguments to its exit code, in this process."""
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv[:] = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    tempfile.tempdir = None
    code = 1
    try:
        runpy.run_path(argv[0], run_name='__main__')
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
