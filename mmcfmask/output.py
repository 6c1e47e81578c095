"""What a command-line tool prints. A run whose results are written must not fail because of who reads them, or in which
letters."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from .errors import one_line


class _Stream(io.FileIO):
    """A file descriptor that takes what is written even where nobody reads any more, as behind ``| head``."""

    said = False

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EAGAIN) and not self.said and self.fileno() != 2:
                self.said = True
                print(f'cannot write the output: {error.strerror}', file=sys.stderr)
            return len(data)


def lasting(stream: TextIO | None) -> TextIO | None:
    """``stream`` on the same file descriptor, without errors: characters that its encoding lacks are written as escapes
    (``\\u03b1``)."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(descriptor, 'w', closefd=False)),
        encoding=stream.encoding,
        errors='backslashreplace',
        line_buffering=stream.line_buffering,
        write_through=getattr(stream, 'write_through', False),
    )


def run_tool(main: Callable[[], object]) -> NoReturn:
    """Run the ``main`` of a tool as a program: its output is :func:`lasting`, and a whole number that it returns is the
    exit code."""
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    with one_line():
        code = main()
    sys.exit(code if type(code) is int else 0)
