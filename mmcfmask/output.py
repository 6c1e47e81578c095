"""Output of the command-line tools: neither a closed pipe nor a poor encoding fails a run that has written results."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from .errors import one_line


class _Stream(io.FileIO):
    """A file descriptor that accepts writes even if nobody reads any more, as behind ``| head``."""

    said = False

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EAGAIN) and not self.said and self.fileno() != 2:
                self.said = True
                print(f'cannot write the output: {error.strerror}', file=sys.stderr)
            return len(data)


def make_lasting(stream: TextIO | None) -> TextIO | None:
    """Wrap a stream so that writing to it cannot fail.

    Characters that its encoding lacks are written as escapes (``\\u03b1``).
    """
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
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
    """Run the ``main`` of a tool as a program.

    Args:
        main (Callable): Returns the exit code as a whole number; anything else means 0. A :class:`UserError` ends in
            one line.
    """
    sys.stdout, sys.stderr = make_lasting(sys.stdout), make_lasting(sys.stderr)
    with one_line():
        code = main()
    sys.exit(code if type(code) is int else 0)
