"""The console script ``mmcfmask COMMAND …``, which runs a script of ``tools/``, and arguments that these scripts share.

Nothing here imports torch or the package, so ``mmcfmask --help`` and ``mmcfmask COMMAND --help`` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

COMMANDS = {
    'train': ('train.py', 'train a model'),
    'test': ('test.py', 'test a model in distribution and on every distribution shift'),
    'predict': ('predict.py', 'predict the classes of images without labels'),
    'compare': ('compare.py', 'compare methods in one table; without arguments, on the built-in benchmark'),
    'study': ('study.py', 'run a study: methods x seeds x data sets'),
    'report': ('report.py', 'make tables and figures of tested models'),
    'show': ('show_counterfactuals.py', 'show the counterfactual images of a config'),
    'explore': ('explore.py', 'explore counterfactual images and predictions on a local page'),
    'wise-ft': ('wise_ft.py', 'interpolate between pretrained and fine-tuned weights'),
    'soup': ('soup.py', 'average the weights of several fine-tuned models'),
    'check-data': ('check_data.py', 'check ImageNet and its shifts under a folder'),
    'pack': ('pack.py', 'pack a folder data set into shards for WebDataset'),
    'export': ('export.py', 'export a model to open_clip, transformers, mmpretrain, torch.export or ONNX'),
    'publish': ('publish.py', 'publish a trained model with its card, in a folder or on the Hugging Face hub'),
    'convert': ('convert_open_clip.py', "convert pretrained weights of open_clip for mmpretrain's VisionTransformer"),
    'mask-quality': ('mask_quality.py', 'measure how well the relevance map finds the object'),
    'benchmark': ('benchmark.py', 'measure the speed of a training step'),
    'towers': ('towers.py', 'try every image tower of open_clip with random weights'),
    'benchmark-data': ('benchmark_data.py', 'measure the speed of reading images'),
    'pretrain-shapes-clip': ('pretrain_shapes_clip.py', 'pre-train the small CLIP of the built-in benchmark'),
}

CROP_SCALE = 0.9  # as mmcfmask.models.inference.relevance_crop has it


def main(argv: list[str] | None = None) -> int | None:
    """Run ``mmcfmask COMMAND ARGUMENTS…``.

    Args:
        argv: The arguments (default: the arguments of the process).

    Returns:
        The exit code; a tool exits by itself.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ['--help']
    if command in ('-h', '--help'):
        try:
            print(usage(), flush=True)
        except BrokenPipeError:  # nobody reads on, as behind `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


# Arguments of the scripts in tools/. A script reads them before it imports the package, so --help answers at once.


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> NoReturn:
    """Run the ``main`` of a script with its parsed arguments, and exit.

    A :class:`mmcfmask.errors.UserError` ends in one line; a whole number that ``main`` returns is the exit code.
    """
    from mmcfmask.output import run_tool

    run_tool(functools.partial(main, args))


def add_run_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'folder for logs', amp: str = 'bfloat16 autocast'
) -> None:
    """Add the arguments of every script that builds a Runner; ``apply_run_arguments`` of the engine applies them.

    Args:
        parser: Gets ``--work-dir``, ``--amp``, ``--cfg-options`` and ``--launcher``.
        work_dir: Help of ``--work-dir``.
        amp: Help of ``--amp``.
    """
    parser.add_argument('--work-dir', type=file_name, help=f'{work_dir} (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help=amp)
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], help='job launcher (default: of the config, or none)'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--shifts`` and ``--skip-broken``, which every script that tests on several sets has."""
    parser.add_argument(
        '--shifts',
        nargs='*',
        metavar='NAME',
        help='test on these shifts and the in-distribution set; missing data is an error (default: the shifts of the '
        'config, without missing ones)',
    )
    parser.add_argument('--skip-broken', action='store_true', help='leave out images that cannot be read')


def add_cfg_options(parser: argparse.ArgumentParser, of: str = '') -> None:
    """Add ``--cfg-options KEY=VALUE …``, a list of texts that ``parse_options`` of the engine reads.

    Args:
        parser: Gets the option; given several times, the texts of all are kept, in order.
        of: Whose config values, for the help, such as ``'of every method'``.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help=f'override config values{of and " " + of}; a value is Python, and any other value is a string',
    )


def add_relevance_crop(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--relevance-crop [SCALE]``: None without it, :data:`CROP_SCALE` without a number; ``text`` is its help."""
    parser.add_argument(
        '--relevance-crop',
        nargs='?',
        const=CROP_SCALE,
        type=float,
        metavar='SCALE',
        help=f'{text} (SCALE: {CROP_SCALE} by default)',
    )
    add_renamed(parser, '--second-look', '--relevance-crop')


def add_renamed(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Let an option of an earlier version end in one line that names its successor."""
    parser.add_argument(old, action=_Renamed, nargs='?', const=new, help=argparse.SUPPRESS)


class _Renamed(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        parser.exit(2, f'{parser.prog}: {option_string} is called {self.const} since mmcfmask 0.2.0\n')


def seed(text: str) -> int:
    """A ``type`` of argparse: a seed, which numpy wants below 2³²."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0 to {2**32 - 1}')
    return int(text)


def count(text: str) -> int:
    """A ``type`` of argparse: a whole number from 1."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1')
    return int(text)


def natural(text: str) -> int:
    """A ``type`` of argparse: a whole number from 0."""
    if not text.isdecimal() or int(text) > 10**9:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0')
    return int(text)


def file_name(text: str) -> str:
    """A ``type`` of argparse: the name of a file or a folder, which an unset variable of the shell leaves empty."""
    if not text:
        raise argparse.ArgumentTypeError('the name is empty')
    return text


if __name__ == '__main__':
    sys.exit(main())
