"""Which files are images, and how they become pixels: the same for training, tests, checks, pictures and inference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from mmengine import fileio
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ConfigError, StorageError

EXTENSIONS = (
    '.jpg',
    '.jpeg',
    '.jpe',
    '.jfif',
    '.mpo',
    '.png',
    '.apng',
    '.webp',
    '.gif',
    '.bmp',
    '.dib',
    '.tif',
    '.tiff',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
    '.avif',
    '.jp2',
    '.j2k',
    '.jpx',
    '.tga',
    '.qoi',
)
# Files of operating systems and file servers, such as thumbnails.
SYSTEM_NAMES = (
    '__MACOSX',
    '@eaDir',
    '$RECYCLE.BIN',
    'System Volume Information',
    'lost+found',
    'Thumbs.db',
    'desktop.ini',
)
# Pillow's names of the formats that are read, whatever the file is called. EPS is left out: Pillow runs Ghostscript on
# it.
FORMATS = (
    'JPEG',
    'MPO',
    'PNG',
    'WEBP',
    'GIF',
    'BMP',
    'DIB',
    'TIFF',
    'PPM',
    'AVIF',
    'HEIF',
    'JPEG2000',
    'TGA',
    'QOI',
    'ICO',
)
BitsPerSample, PhotometricInterpretation = 258, 262  # tags of TIFF
MAX_PIXELS = 178_956_970  # Pillow's limit, which other packages switch off: a small file may fill the memory


# Which files are images
# --------------------------------------------------------------------------------------------------------------


def is_hidden(name: str) -> bool:
    """Whether users do not see a file or folder, such as ``.ipynb_checkpoints``."""
    return name.startswith('.') or name in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file name ends in one of :data:`EXTENSIONS`, in any case, and is not hidden."""
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def find_images(
    folder: str | os.PathLike, root: str | os.PathLike | None = None, left_out: Counter | None = None
) -> list[str]:
    """Sorted names of all images in a folder and its sub-folders, relative to ``folder``, with ``/``.

    Hidden files and folders do not count. Every real folder is visited once: a link to a folder is followed only if it
    leads out of ``root`` and not to a folder that contains the link.

    Args:
        folder: Where to look.
        root: The data set that the folder belongs to. Defaults to the folder.
        left_out (Counter, optional): Counts all other files by extension; broken links, pipes and devices under ''.

    Raises:
        StorageError: A folder cannot be read; the message names it.
    """
    names, count = [], Counter() if left_out is None else left_out
    top, seen = os.path.realpath(folder if root is None else root), set()
    waiting = [(os.fspath(folder), os.path.realpath(folder), '')]
    while waiting:
        path, real, prefix = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        folders = []
        for entry in list_folder(path):
            name = entry.name
            if is_folder(entry):
                inner = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, name)
                if not entry.is_symlink() or not (lies_in(inner, top) or lies_in(real, inner)):
                    folders.append((entry.path, inner, f'{prefix}{name}/'))
            elif not is_file(entry):
                count[''] += 1
            elif name.lower().endswith(EXTENSIONS):  # the list has no hidden files
                names.append(prefix + name)
            else:
                count[os.path.splitext(name)[1].lower() or 'none'] += 1
        waiting += reversed(folders)
    return sorted(names)


def list_folder(path: str | os.PathLike) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden, sorted by name.

    Raises:
        StorageError: The folder cannot be read; the message names it.
    """
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(f'cannot read the folder {os.fspath(path)!r} ({error.strerror})') from None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one. ``entry.is_dir`` fails where links lead in a circle."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry) -> bool:
    """Whether an entry is a regular file or a link to one, not a pipe or device. Accesses the disk for links only."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def lies_in(path: str, folder: str) -> bool:
    """Whether a real path is a folder or lies below it."""
    return path == folder or path.startswith(os.path.join(folder, ''))


def left_out_words(left_out: Counter) -> str:
    """Describe what :func:`find_images` counted: '5 files (3 .txt, 1 without extension, 1 not a regular file)'."""
    words, shown = {'none': 'without extension', '': 'not a regular file'}, left_out.most_common(8)
    total, others = sum(left_out.values()), sum(left_out.values()) - sum(number for _, number in shown)
    parts = [f'{number} {words.get(end, end)}' for end, number in shown] + ([f'{others} others'] if others else [])
    return f'{total} files ({", ".join(parts)})'


# What their pixels are
# ---------------------------------------------------------------------------------------------------------------


@contextmanager
def open_image(path: str | os.PathLike, backend_args: dict | None = None) -> Iterator[Image.Image]:
    """Open an image file with Pillow. Any failure inside the context becomes a StorageError that names the file.

    Args:
        path: A file, or a URL that mmengine knows.
        backend_args (dict, optional): Where the file is, see :func:`mmengine.fileio.get`.
    """
    path = os.fspath(path)
    try:
        Image.init()
        with (
            _open(path, backend_args) as file,
            Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ConfigError(f'{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} allowed')
            yield image
    except Exception as error:  # decoders raise errors of many types
        raise StorageError(f'{path} cannot be read as an image ({_reason(path, error)})') from None


def _open(path: str, backend_args: dict | None):
    if backend_args or '://' in path:
        return BytesIO(fileio.get(path, backend_args=backend_args))
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise ConfigError('it is not a regular file')
    return open(path, 'rb')


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return 'the file is empty' if empty else 'its content is not in a supported image format'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image, turned: bool = False) -> Image.Image:
    """An opened image with 8 bits of red, green and blue.

    Gives ``image.convert('RGB')``, as the loaders of torchvision and CLIP do: transparency is ignored, an animation
    gives its first frame. One difference: 16-bit grey (12-bit in a TIFF) keeps its upper 8 bits; Pillow would turn most
    of it white.

    Args:
        image: From :func:`open_image`.
        turned (bool): Rotate by the EXIF tag. The published pipelines do not.

    Raises:
        ConfigError: 32-bit grey: nothing says which values are black and white.
    """
    wide = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
    if image.mode in ('I', 'F') and not wide:
        kind = 'floating-point numbers' if image.mode == 'F' else '32-bit integers'
        raise ConfigError(
            f'its pixels are {kind}, and nothing says which values are black and white: convert it to 8 bits'
        )
    tags = getattr(image, 'tag_v2', {})  # TIFF only
    if turned:
        image = ImageOps.exif_transpose(image)
    if wide:
        grey = (np.asarray(image) >> tags.get(BitsPerSample, (16,))[0] - 8).astype(np.uint8)
        return Image.fromarray(255 - grey if tags.get(PhotometricInterpretation) == 0 else grey).convert('RGB')
    image.load()
    image.info.pop('transparency', None)  # Pillow warns that it is ignored
    return image.convert('RGB')


def read_image(path: str | os.PathLike, backend_args: dict | None = None, turned: bool = False) -> Image.Image:
    """The RGB image of a file; see :func:`open_image` and :func:`to_rgb`."""
    with open_image(path, backend_args) as image:
        return to_rgb(image, turned)


def why_unreadable(path: str | os.PathLike) -> str | None:
    """Why an image file cannot be read, with its path; None if it can be read."""
    try:
        read_image(path)
    except StorageError as error:
        return str(error)
    return None


def why_unreadable_all(paths: Sequence[str | Path], at_once: int = 10_000) -> Iterator[str | None]:
    """:func:`why_unreadable` of many files, in threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), at_once):
            yield from pool.map(why_unreadable, paths[start : start + at_once])
