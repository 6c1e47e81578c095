"""The console script: ``mmcfmask COMMAND …`` runs a script of ``tools/``.

It finds the scripts without importing the package, so that ``mmcfmask --help`` and ``mmcfmask COMMAND --help`` answer at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

COMMANDS = {
    'train': ('train.py', 'train a model'),
    'test': ('test.py', 'test a model in distribution and on every distribution shift'),
    'compare': ('compare.py', 'compare methods in one table; without arguments, on the built-in benchmark'),
    'study': ('study.py', 'run a study: methods x seeds x data sets'),
    'report': ('report.py', 'make tables and figures of tested models'),
    'show': ('show_counterfactuals.py', 'show the counterfactual images of a config'),
    'wise-ft': ('wise_ft.py', 'interpolate between pre-trained and fine-tuned weights'),
    'soup': ('soup.py', 'average the weights of several fine-tuned models'),
    'check-data': ('check_data.py', 'check ImageNet and its shifts under a folder'),
    'export': ('convert_open_clip.py', "convert an image tower of open_clip for mmpretrain's VisionTransformer"),
    'mask-quality': ('mask_quality.py', 'measure how well the relevance map finds the object'),
    'benchmark': ('benchmark.py', 'measure the speed of a training step'),
    'benchmark-data': ('benchmark_data.py', 'measure the speed of reading images'),
    'pretrain-shapes-clip': ('pretrain_shapes_clip.py', 'pre-train the small CLIP of the built-in benchmark'),
}


def main(argv: list[str] | None = None) -> int | None:
    """Run ``mmcfmask COMMAND ARGUMENTS…``.

    Args:
        argv: The arguments (default: those of the process).

    Returns:
        The exit code; a tool exits by itself.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ['--help']
    if command in ('-h', '--help'):
        print(usage())
        return 0
    if command == '--version':
        print('mmcfmask', runpy.run_path(str(package_folder() / 'version.py'))['__version__'])
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS)
        hint = f'did you mean {" or ".join(near)}?' if near else '`mmcfmask --help` lists the commands'
        print(f'mmcfmask: there is no command {command!r}; {hint}', file=sys.stderr)
        return 2
    try:
        run_script(package_folder() / '.mim' / 'tools' / COMMANDS[command][0], f'mmcfmask {command}', arguments)
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise
        sys.exit(f'mmcfmask: {error}')
    return None


def run_script(path: Path, name: str, arguments: list[str]) -> None:
    """Run a script as ``python path arguments…`` would, but under ``name``, which its ``--help`` shows."""
    script = sys.modules['__main__'] = ModuleType('__main__')
    script.__file__ = str(path)
    sys.argv = [name, *arguments]
    exec(compile(path.read_bytes(), path, 'exec'), vars(script))


def usage() -> str:
    """The text of ``mmcfmask --help``."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: mmcfmask COMMAND …',
            '',
            'Robust fine-tuning of CLIP with counterfactual masked images.',
            '',
            'commands:',
            *lines,
            '',
            '`mmcfmask COMMAND --help` shows the arguments of a command, `mmcfmask --version` the version.',
        ]
    )


def package_folder() -> Path:
    """The folder of the package, which is found but not imported."""
    spec = importlib.util.find_spec('mmcfmask')
    if spec is None or spec.origin is None:
        sys.exit('mmcfmask: the package mmcfmask is not installed in this environment')
    return Path(spec.origin).parent


if __name__ == '__main__':
    sys.exit(main())
