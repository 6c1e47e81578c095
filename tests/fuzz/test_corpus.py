"""Every bad input ends in one clear line, or may be accepted. ``make test`` tries some, ``make fuzz`` all."""

from __future__ import annotations

import sys

import pytest
from corpus import Case, cases

import mmcfmask_cli
from mmcfmask.engine import run_test, run_training, run_wise_ft
from mmcfmask.engine.config import load_config
from mmcfmask.engine.options import parse_options

CASES = cases()
EVERY = 5  # in `make test`


class Accepted(Exception):
    """The input came as far as the Runner."""


def run(case: Case, folder, monkeypatch) -> None:
    """Run the command of a case in this process, up to the Runner."""
    for name, content in case.files.items():
        if callable(content):
            content(folder / name)
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content, encoding='utf-8')
    for variable in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(variable, raising=False)
    for variable, text in case.environment.items():
        monkeypatch.setenv(variable, text)

    def read(path, options, **kwargs):
        options = options if isinstance(options, dict) else parse_options(options)
        return load_config(path, {**options, **case.options}, **kwargs)

    def stop(cfg, *args):
        raise Accepted

    for module in (run_training, run_test, run_wise_ft):
        monkeypatch.setattr(module, 'load_config', read)
        monkeypatch.setattr(module, 'build_runner', stop)
    monkeypatch.setattr(sys, 'argv', sys.argv)  # the command replaces these three
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    for stream in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    arguments = [argument.replace('{}', str(folder)) for argument in case.arguments]
    if case.tool not in ('study', 'mask-quality') and '--work-dir' not in arguments:
        arguments += ['--work-dir', str(folder / 'work')]
    mmcfmask_cli.main([case.tool, *arguments])


@pytest.mark.parametrize(
    'case',
    [
        pytest.param(case, id=case.name[:80], marks=[] if index % EVERY == 0 else [pytest.mark.slow])
        for index, case in enumerate(CASES)
    ],
)
def test_bad_input(case, tmp_path, monkeypatch, capsys):
    try:
        run(case, tmp_path, monkeypatch)
        accepted = True
    except Accepted:
        accepted = True
    except SystemExit as stop:
        accepted = stop.code in (0, None)
        if not accepted:
            text = stop.code if isinstance(stop.code, str) else capsys.readouterr().err.strip().splitlines()[-1]
            assert stop.code == 2 or isinstance(stop.code, str), stop.code
            assert text and '\n' not in text and 'Traceback' not in text, text
            assert case.says in text, text
    assert accepted if case.must_run else not accepted or case.may_run
    assert not list(tmp_path.glob('**/ran'))


def test_there_are_enough():
    assert len(CASES) >= 300
