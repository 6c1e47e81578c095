"""For tests that start processes."""

import socket


def free_port() -> str:
    """A port that no other process group uses."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def rank_environments(processes: int) -> list[dict[str, str]]:
    """What a launcher sets for each of the processes of one machine."""
    size, port = str(processes), free_port()
    shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    return [dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(processes)]
