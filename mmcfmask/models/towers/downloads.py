"""The Hugging Face hub, on machines without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants


@contextmanager
def offline_if_unreachable() -> Iterator[str | None]:
    """Inside the context, files of the hub come from its cache alone if its host has no address on this machine.

    huggingface_hub would try five times, which takes half a minute, and log each. With a proxy, the proxy decides.

    Yields:
        str | None: Why the hub cannot be reached.
    """
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        if not constants.HF_HUB_OFFLINE and not getproxies():
            socket.getaddrinfo(host, None)
    except OSError as error:
        with mock.patch.object(constants, 'HF_HUB_OFFLINE', True):
            yield f'no network: {host}: {error.strerror}'
    else:
        yield None
