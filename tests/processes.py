"""For tests that start processes."""

import socket


def free_port() -> str:
    """A port that no other process group uses."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])
