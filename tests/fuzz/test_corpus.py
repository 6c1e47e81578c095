"""Every bad input of the corpus ends in one clear line, or can be meant. ``make test`` tries some, ``make fuzz`` all."""

from __future__ import annotations

import pytest
from corpus import Case, cases
from scripts import load_tool

from mmcfmask.engine.checks.schema import check_config
from mmcfmask.engine.config import load_config

CASES = cases()
EVERY = 5  # in `make test`


class Accepted(Exception):
    """The input came as far as the Runner."""


def run(case: Case, folder, monkeypatch) -> None:
    """The tool on a case, in this process, up to the Runner."""
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
    tool = load_tool(case.tool)

    def stop(cfg):
        check_config(cfg)
        raise Accepted

    monkeypatch.setattr(tool, 'build_runner', stop, raising=False)
    read = load_config
    monkeypatch.setattr(
        tool,
        'load_config',
        lambda path, options: read(path, {**options, **case.options}),
        raising=False,
    )
    arguments = [argument.replace('{}', str(folder)) for argument in case.arguments]
    if case.tool != 'study' and '--work-dir' not in arguments:
        arguments += ['--work-dir', str(folder / 'work')]
    tool.main(arguments)


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
        accepted = False
        text = stop.code if isinstance(stop.code, str) else capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.code == 2 or isinstance(stop.code, str), stop.code
        assert text and '\n' not in text and 'Traceback' not in text, text
        assert case.says in text, text
    assert not accepted or case.may_run
    assert not list(tmp_path.glob('**/ran'))


def test_there_are_enough():
    assert len(CASES) >= 300
