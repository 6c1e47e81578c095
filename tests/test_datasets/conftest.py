"""Folders of small images, and what is logged."""

import random

import pytest
from mmengine.logging import MMLogger
from trees import save_small_image


@pytest.fixture
def root(tmp_path):
    """cat: 10 images, dog: 12, emu: 14, made in a random order of names."""
    names = [
        f'{name}/{name}_{index}.png' for name, number in dict(cat=10, dog=12, emu=14).items() for index in range(number)
    ]
    random.Random(0).shuffle(names)
    for name in names:
        save_small_image(tmp_path / name)
    return tmp_path


@pytest.fixture
def log(monkeypatch):
    """What is logged as a warning."""
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', lambda level, message, *args: messages.append(message))
    return messages
