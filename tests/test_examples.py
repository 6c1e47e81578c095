"""The examples run as they stand, with fewer images and steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / 'examples'
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(EXAMPLES.parent))


def run(arguments, folder):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_minimal_loop(tmp_path):
    call = f"import runpy; runpy.run_path({str(EXAMPLES / 'minimal.py')!r})['main'](steps=2, test_size=20)"
    text = run(['-c', call], tmp_path)
    assert re.search(r'zero-shot: ID [\d.]+ %, OOD [\d.]+ %\n', text)
    assert re.search(r'fine-tuned: ID [\d.]+ %, OOD [\d.]+ %\n', text)
    assert re.search(r'step 2: cross-entropy \d+\.\d+, distillation \d+\.\d+', text)


def as_script(notebook, **smaller):
    """The code of a notebook as a Python script: ``!command`` runs in a shell and must succeed."""
    lines = ['import subprocess, sys']
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code':
            for line in ''.join(cell['source']).split('\n'):
                if line.startswith('!'):
                    command = line[1:].replace('mmcfmask ', f'{sys.executable} -m mmcfmask_cli ', 1)
                    line = f'subprocess.run({command!r}, shell=True, check=True)'
                lines.append(line)
    text = '\n'.join(lines)
    for old, new in smaller.items():
        assert smaller and old in text
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_tutorial(tmp_path):
    code = as_script(
        EXAMPLES / 'tutorial.ipynb',
        **{
            'TRAIN_IMAGES, TEST_IMAGES = 1000, 300': 'TRAIN_IMAGES, TEST_IMAGES = 160, 20',
            'max_epochs=5': 'max_epochs=1',
        },
    )
    (tmp_path / 'tutorial.py').write_text(code, encoding='utf-8')
    text = run(['tutorial.py'], tmp_path)
    for method in ('zeroshot', 'ft', 'cfmask'):
        assert re.search(rf'{method}: more_photos [\d.]+ %, other_backgrounds [\d.]+ %, sketches [\d.]+ %', text)
    assert re.search(r'star/\d+\.png \w+ [\d.]+\n', text) and 'report/' in text
