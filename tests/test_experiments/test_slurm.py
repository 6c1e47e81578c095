"""Jobs of a cluster: by submitit's local processes, and by a sbatch that runs a job at once on this machine."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.jobs import Command, Job
from mmcfmask.experiments.scheduler import run_jobs
from mmcfmask.experiments.slurm import RunCommand, SlurmExecutor

pytest.importorskip('submitit')

# A cluster of one machine. `jobs/N` holds the state of job N.
STUBS = {
    'sbatch': """
number=$(($(ls "$CLUSTER/jobs" | wc -l) + 1))
echo RUNNING > "$CLUSTER/jobs/$number"
cp "$1" "$CLUSTER/script$number"
export SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
(setsid bash "$1"; grep -q RUNNING "$CLUSTER/jobs/$number" && echo COMPLETED > "$CLUSTER/jobs/$number") &> /dev/null &
echo "Submitted batch job $number"
""",
    'srun': """
while [ "${1:0:1}" = - ]; do case "$1" in --unbuffered) shift;; *) shift 2;; esac; done
"$@" &> "$CLUSTER/output$SLURM_JOB_ID" & echo $! > "$CLUSTER/pid$SLURM_JOB_ID"; wait
""",
    'sacct': """
echo 'JobID|State|NodeList'
for job in "$CLUSTER"/jobs/*; do echo "$(basename "$job")|$(cat "$job")|here"; done
""",
    'scancel': 'echo CANCELLED > "$CLUSTER/jobs/$1"; kill "$(cat "$CLUSTER/pid$1")"',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / 'cluster'
    (folder / 'jobs').mkdir(parents=True)
    (folder / 'bin').mkdir()
    for name, text in STUBS.items():
        (folder / 'bin' / name).write_text(f'#!/bin/bash\n{text}')
        (folder / 'bin' / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setenv('CLUSTER', str(folder))
    return folder


@pytest.fixture
def command(tmp_path):
    def make(program, name='step'):
        script = tmp_path / f'{name}.py'
        script.write_text(program)
        log = tmp_path / f'{name}.log'
        log.touch()
        return Command(name, [str(script)], log)

    return make


def wait(process, seconds=300):
    end = time.monotonic() + seconds
    while (code := process.poll()) is None:
        assert time.monotonic() < end, 'the job did not end'
        time.sleep(0.1)
    return code


def test_a_job_runs_a_command_and_returns_its_exit_code(cluster, command, tmp_path):
    executor = SlurmExecutor(2, tmp_path / 'jobs', dict(slurm_partition='gpu', gpus_per_node=1, timeout_min=90))
    good, bad = (
        executor.start(command(f'print("out {code}"); raise SystemExit({code})', f'c{code}'), 0) for code in (0, 3)
    )
    assert (wait(good), wait(bad)) == (0, 3)
    assert (tmp_path / 'c3.log').read_text() == 'out 3\n'
    assert not list(tmp_path.glob('*.slurm'))
    script = (cluster / 'script1').read_text()
    for line in ('--partition=gpu', '--gpus-per-node=1', '--time=90', '--job-name=mmcfmask'):
        assert line in script


@pytest.mark.slow
def test_a_cancelled_job_fails_with_its_state_in_the_log(cluster, command, tmp_path):
    executor = SlurmExecutor(1, tmp_path / 'jobs')
    process = executor.start(command('import time; print("at work", flush=True); time.sleep(60)'), 0)
    while 'at work' not in (tmp_path / 'step.log').read_text():
        time.sleep(0.1)
    subprocess.run(['scancel', process.job.job_id], check=True)
    process.job.watcher.update()
    assert wait(process) == 1
    assert 'SLURM job 1: CANCELLED.' in (tmp_path / 'step.log').read_text()


@pytest.mark.slow
def test_a_study_that_was_killed_waits_for_its_jobs_again(cluster, command, tmp_path):
    step = command('import time; time.sleep(2); print("done")')
    first = SlurmExecutor(1, tmp_path / 'jobs').start(step, 0)
    again = SlurmExecutor(1, tmp_path / 'jobs').start(step, 0)  # by another process, which knows the ticket alone
    assert again.job.job_id == first.job.job_id and len(list((cluster / 'jobs').iterdir())) == 1
    assert wait(again) == 0 and (tmp_path / 'step.log').read_text() == 'done\n'
    assert SlurmExecutor(1, tmp_path / 'jobs').start(step, 0).job.job_id == '2'


@pytest.mark.slow
def test_stopping_cancels(cluster, command, tmp_path):
    process = SlurmExecutor(1, tmp_path / 'jobs').start(command('import time; time.sleep(60)'), 0)
    while not (cluster / 'pid1').exists():
        time.sleep(0.1)
    process.stop()
    assert (cluster / 'jobs' / '1').read_text() == 'CANCELLED\n' and not (tmp_path / 'step.slurm').exists()


@pytest.mark.slow
def test_jobs_of_a_study(cluster, tmp_path):
    """Commands in their order, and jobs after those that they depend on."""

    def commands(job):
        for i in range(2):
            script = job.product.with_suffix(f'.{i}.py')
            script.write_text(f'open({str(job.product)!r}, "a").write("{i}")')
            yield Command(f'step {i}', [str(script)], script.with_suffix('.log'), 0.5)

    first = Job('first', tmp_path / 'first', tmp_path / 'first.key', 'key', commands)
    second = Job('second', tmp_path / 'second', tmp_path / 'second.key', 'key', commands, depends_on=[first])
    failed = run_jobs([first, second], Console(quiet=True), SlurmExecutor(2, tmp_path / 'jobs'), refresh=0.1)
    assert not failed and first.product.read_text() == second.product.read_text() == '01'


def test_a_preempted_command_ends_and_is_submitted_again(tmp_path):
    script, log = tmp_path / 'train.py', tmp_path / 'train.log'
    script.write_text('import time; print("started", flush=True); time.sleep(60)')
    run = RunCommand([str(script)], str(log))
    thread = threading.Thread(target=run)
    thread.start()
    while not (log.exists() and log.read_text()):
        time.sleep(0.1)
    again = run.checkpoint()
    thread.join(10)
    assert not thread.is_alive() and run.process.returncode is not None
    assert again.function.arguments == run.arguments and again.function.log == run.log


def test_mistakes(cluster, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="slurm: Unknown argument 'partitoin' for executor 'slurm'"):
        SlurmExecutor(1, tmp_path / 'jobs', dict(slurm_partitoin='gpu'))
    with pytest.raises(ConfigError, match='slurm: Parameter "mem_gb" expected type'):
        SlurmExecutor(1, tmp_path / 'jobs', dict(mem_gb='many'))
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent))
    with pytest.raises(ConfigError, match='--executor slurm: .*srun'):
        SlurmExecutor(1, tmp_path / 'jobs')
