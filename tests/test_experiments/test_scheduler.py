"""Jobs of small scripts: which are kept, which fail, which run at once, and how long is left."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmcfmask.experiments import scheduler
from mmcfmask.experiments.jobs import Command, Job, JobError
from mmcfmask.experiments.local import LocalExecutor
from mmcfmask.experiments.scheduler import format_time, time_left


def run_jobs(jobs, console, slots=1):
    return scheduler.run_jobs(jobs, console, LocalExecutor(slots), refresh=0.01)


@pytest.fixture
def console():
    return Console(record=True, width=200)


@pytest.fixture
def make(tmp_path):
    """A job whose commands are Python programs; they find the path of the product in PRODUCT."""

    def make(label, *programs, key='same', depends_on=()):
        folder = tmp_path / label

        def commands(job):
            for i, program in enumerate(programs):
                script = folder / f'{i}.py'
                script.write_text(f'PRODUCT = {str(job.product)!r}\n{program}\n')
                yield Command(f'step {i}', [str(script)], folder / f'{i}.log', 1 / len(programs), epochs=2)

        return Job(
            label,
            folder / 'product',
            folder / 'key',
            key,
            commands,
            depends_on=list(depends_on),
            leftovers=('*.state',),
        )

    return make


WRITE = "open(PRODUCT, 'a').write('x')"


def test_commands_run_in_order_once(make, console, tmp_path):
    jobs = [
        make('a', "open(PRODUCT + '.state', 'w')", f"import os; os.stat(PRODUCT + '.state'); {WRITE}"),
        make('b', WRITE),
    ]
    assert run_jobs(jobs, console) == {}
    assert run_jobs(jobs, console) == {}
    assert [job.product.read_text() for job in jobs] == ['x', 'x']
    assert console.export_text().count('kept from') == 2


def test_other_settings_start_over(make, console):
    run_jobs([make('a', f"open(PRODUCT[:-7] + 'old.state', 'w'); {WRITE}")], console)
    job = make('a', f"import os; assert not os.path.exists(PRODUCT[:-7] + 'old.state'); {WRITE}", key='other')
    assert not job.is_finished() and run_jobs([job], console) == {}
    assert job.product.read_text() == 'x' and job.is_finished()


def test_a_job_that_was_started_with_the_same_settings_resumes(make, console):
    run_jobs([make('a', "open(PRODUCT[:-7] + 'half.state', 'w'); raise SystemExit(3)")], console)
    job = make('a', f"import os; assert os.path.exists(PRODUCT[:-7] + 'half.state'); {WRITE}")
    assert run_jobs([job], console) == {}


def test_a_failure_stops_only_its_dependents(make, console):
    bad = make('bad', "print('line before'); raise ValueError('the reason')")
    child, grandchild = make('child', WRITE, depends_on=[bad]), make('grandchild', WRITE)
    grandchild.depends_on = [child]
    good, nothing = make('good', WRITE), make('nothing', 'pass')

    def broken(job):
        raise JobError('no checkpoint here')
        yield

    cannot = make('cannot')
    cannot.commands = broken
    failed = run_jobs([child, grandchild, bad, good, nothing, cannot], console, slots=2)
    assert failed == {
        'bad': f'step 0 failed, see {bad.product.parent / "0.log"}',
        'child': 'it depends on bad, which failed',
        'grandchild': 'it depends on child, which failed',
        'nothing': f'it ended, but did not write {nothing.product}',
        'cannot': 'no checkpoint here',
    }
    shown = console.export_text()
    assert 'ValueError: the reason' in shown and 'line before' in shown and good.is_finished()


def test_dependencies_come_first_and_slots_are_used(make, console, tmp_path):
    note = (
        f"import time; log = open({str(tmp_path / 'log')!r}, 'a')\nlog.write(PRODUCT.split('/')[-2] + '+'); log.flush()"
    )
    end = f"log.write(PRODUCT.split('/')[-2] + '-'); log.flush(); {WRITE}"
    first = make('a', f'{note}\ntime.sleep(0.7)\n{end}')
    second = make('b', f'{note}\ntime.sleep(0.7)\n{end}')
    third = make('c', f'{note}\n{end}', depends_on=[first, second])
    assert run_jobs([third, first, second], console, slots=2) == {}
    order = (tmp_path / 'log').read_text()
    assert set(order[:4]) == {'a', 'b', '+'} and order.endswith('c+c-')


def test_what_a_job_needs_is_made_again(make, console, tmp_path):
    """A finished job without its checkpoint runs only if another one is to run that needs it, and runs first."""
    source = make('source', f"open(PRODUCT + '.checkpoint', 'w'); {WRITE}")
    other = make('other', WRITE)
    child = make('child', f'import os; os.stat({str(source.product)!r} + ".checkpoint"); {WRITE}', depends_on=[source])
    source.is_usable = Path(f'{source.product}.checkpoint').is_file
    jobs = [child, source, other]
    assert run_jobs(jobs, console) == {}
    Path(f'{source.product}.checkpoint').unlink()
    assert scheduler.find_pending(jobs) == []
    child.product.unlink()
    assert scheduler.find_pending(jobs) == [child, source]
    assert run_jobs(jobs, console, slots=2) == {}
    assert [job.product.read_text() for job in jobs] == ['x', 'x', 'x']


def test_a_job_that_serves_others_runs_only_for_them(make, console):
    trial = make('trial', WRITE)
    trial.serves = True
    child = make('child', WRITE, depends_on=[trial])
    assert scheduler.find_pending([trial, child]) == [trial, child] and scheduler.find_pending([trial]) == []
    run_jobs([trial, child], console)
    trial.product.unlink()
    assert scheduler.find_pending([trial, child]) == []


def test_a_run_whose_setting_is_no_longer_chosen_runs_again_for_those_that_need_it(make, console, tmp_path):
    """It was finished as long as its trials were missing; they are made again for another run, and choose another."""
    choice = tmp_path / 'choice'
    trial = make('trial', f'open({str(choice)!r}, "w").write(" Y"); {WRITE}')
    trial.serves = True
    run, other = make('run', WRITE, depends_on=[trial]), make('other', WRITE, depends_on=[trial])
    for job in run, other:
        job.choose, job.basis = lambda: choice.read_text() if choice.exists() else None, ' of grid'
    child = make('child', WRITE, depends_on=[run])
    run.product.parent.mkdir()
    run.product.write_text('old')
    run.key_file.write_text('same X of grid')
    jobs = [trial, run, other, child]
    assert scheduler.find_pending(jobs) == [trial, other, child]
    assert run_jobs(jobs, console) == {}
    assert all(job.is_finished() for job in jobs) and run.product.read_text() == 'x'


def running(group, seconds, remaining):
    return SimpleNamespace(job=SimpleNamespace(group=group), seconds=seconds, estimate_remaining=lambda: remaining)


def test_time_left():
    def job(*group):
        return SimpleNamespace(group=group)

    assert time_left([job('d', 'trained', 'FT')], [], [], 1) is None
    done = [(('d', 'trained', 'FT'), 100.0), (('d', 'trained', 'CF'), 200.0), (('d', 'tested', 'ZS'), 10.0)]
    assert time_left([job('d', 'trained', 'FT')], [], done, 1) == 100
    assert time_left([job('d', 'trained', 'LP')], [], done, 1) == 150  # as other trainings
    assert time_left([job('e', 'trained', 'LP')], [], done, 1) == pytest.approx(310 / 3)
    assert (
        time_left([job('d', 'trained', 'FT')] * 4, [running(('d', 'trained', 'FT'), 30, 70)], done, 2) == (400 + 70) / 2
    )
    assert time_left([], [running(('d', 'trained', 'FT'), 30, None)], done, 2) == 70
    assert time_left([job('d', 'trained', 'FT')], [running(('d', 'trained', 'FT'), 30, 50)], [], 1) == 130
    assert [format_time(seconds) for seconds in (0.4, 45, 90, 700, 3600, 12000)] == [
        '0 s',
        '45 s',
        '2 min',
        '12 min',
        '1 h 00 min',
        '3 h 20 min',
    ]


OUTER = '''
import sys
from pathlib import Path
from rich.console import Console
from mmcfmask.experiments.jobs import Command, Job
from mmcfmask.experiments.local import LocalExecutor
from mmcfmask.experiments.scheduler import run_jobs
folder = Path(sys.argv[1])
(folder / 'inner.py').write_text(f"""
import os, time
open({str(folder / 'pid')!r} + '.part', 'w').write(str(os.getpid()))
os.rename({str(folder / 'pid')!r} + '.part', {str(folder / 'pid')!r})
time.sleep(60)
""")
commands = [Command('x', [str(folder / 'inner.py')], folder / 'log')]
job = Job('a', folder / 'product', folder / 'key', 'k', lambda job: iter(commands))
run_jobs([job], Console(), LocalExecutor())
'''


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='Linux ends the children of a killed process')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_killed_study(tmp_path, number):
    outer = subprocess.Popen([sys.executable, '-c', OUTER, str(tmp_path)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if (tmp_path / 'pid').is_file() or outer.poll() is not None:
            break
        time.sleep(0.1)
    pid = int((tmp_path / 'pid').read_text())
    assert alive(pid)
    outer.send_signal(number)
    outer.wait(30)
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)
