"""A Dockerfile as a shell script, for machines without Docker."""

import re
import shlex
from pathlib import Path


def read_dockerfile(path):
    """[(instruction, arguments)], without comments, continued lines joined."""
    lines = [line for line in Path(path).read_text().splitlines() if line.strip() and not line.lstrip().startswith('#')]
    text = '\n'.join(lines).replace('\\\n', ' ')
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines()]


def make_script(instructions, root, context, arguments):
    """The instructions as a script: ``root`` takes the place of the root folder, ``context`` of the build context.

    Args:
        instructions: From :func:`read_dockerfile`.
        root (Path): Folder in which COPY and WORKDIR write.
        context (Path): Folder from which COPY reads.
        arguments (dict): Values of ``--build-arg``.

    Raises:
        ValueError: An instruction that this does not understand.
    """
    script, folder = ['set -eu'], '/'
    for name, value in instructions:
        if name == 'FROM':
            continue
        elif name == 'ARG':
            key, _, default = value.partition('=')
            script.append(f'{key}={shlex.quote(arguments.get(key, default))}')
        elif name == 'ENV' and re.fullmatch(r'\w+=\S+', value):
            script.append(f'export {value}')
        elif name == 'WORKDIR':
            folder = value
            script.append(f'mkdir -p {shlex.quote(f"{root}{folder}")} && cd {shlex.quote(f"{root}{folder}")}')
        elif name == 'COPY' and not value.startswith('-'):
            *sources, target = value.split()
            script.append(f'mkdir -p {target}')
            script += [
                f'cp -a {context}/{source}{"/." if (context / source).is_dir() else ""} {target}' for source in sources
            ]
        elif name == 'RUN' and not value.startswith(('-', '[')):
            script.append(value)
        elif name in ('ENTRYPOINT', 'CMD') and value.startswith('['):
            continue
        else:
            raise ValueError(f'not understood: {name} {value}')
    return '\n'.join(script) + '\n'


def read_ignored(path):
    """The names in ``.dockerignore`` of the form ``*`` and ``!name``: what the build context holds."""
    lines = Path(path).read_text().split()
    if lines[0] != '*' or not all(line.startswith(('!', '**/')) for line in lines[1:]):
        raise ValueError('.dockerignore must exclude everything and name exceptions')
    return [line[1:] for line in lines if line.startswith('!')], [line[3:] for line in lines if line.startswith('**/')]
