"""The device that a tool runs on."""

from __future__ import annotations

import torch

from ..errors import ConfigError, first_line


def find_device(name: str | None = None) -> torch.device:
    """The device of ``--device``; without a name the GPU, or the CPU if there is none.

    Raises:
        ConfigError: torch does not have this device here.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f'--device {name}: {first_line(error)}') from None
