"""Published models: a folder of tools/publish.py, here or as a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import ConfigError, MissingFileError, StorageError, first_line
from ..files import as_path
from ..messages import short_list
from ..models.towers.downloads import offline_if_unreachable

CONFIG, CHECKPOINT, METRICS = 'config.py', 'checkpoint.pth', 'metrics.json'
SCHEME = 'hf://'
LOGIN = 'run `hf auth login`, or set HF_TOKEN'
REPOSITORY = re.compile(r'[\w.-]+/[\w.-]+')
OF_THE_HUB = ('.gitattributes',)  # files that the hub itself writes


def published_config(path: str | os.PathLike) -> str:
    """The config file that an argument names: of a published folder, of ``hf://user/name[@revision]``, or itself."""
    return _published_file(os.fspath(path), CONFIG)


def published_checkpoint(path: str | os.PathLike | None, config: str | os.PathLike = '') -> str | None:
    """The checkpoint that an argument names, in the same way. Without one, that of a published ``config``, or None."""
    if path is None:
        config = os.fspath(config)
        if not config.startswith(SCHEME) and not os.path.isfile(os.path.join(config, CHECKPOINT)):
            return None
        path = config
    return _published_file(os.fspath(path), CHECKPOINT)


def _published_file(path: str, name: str) -> str:
    folder = pull(path) if path.startswith(SCHEME) else path
    file = os.path.join(folder, name)
    if os.path.isfile(file):
        return file
    if folder != path:
        raise MissingFileError(f'{path} has no {name}: it is no model of mmcfmask publish')
    return path


def parse_repository(address: str) -> tuple[str, str | None]:
    """``'hf://user/name@revision'`` as ``('user/name', 'revision')``; None without a revision.

    Raises:
        ConfigError: It is something else.
    """
    repository, _, revision = address.removeprefix(SCHEME).partition('@')
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f'{address!r} names no repository of the hub: write hf://user/name, or hf://user/name@revision'
        )
    return repository, revision or None


def pull(address: str) -> str:
    """Download a published model without its exports, and return the folder. It is downloaded once.

    Args:
        address (str): ``hf://user/name[@revision]``.

    Raises:
        ConfigError: This is not how a repository is named.
        MissingFileError: There is no such repository or revision, or it is private.
        StorageError: The hub cannot be reached, and nothing was downloaded earlier.
    """
    repository, revision = parse_repository(address)
    with explained(address):
        return huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, CHECKPOINT, METRICS]
        )


def check_pushable(address: str) -> None:
    """Check early that a model can be pushed: there is a token, and no repository with files of something else.

    Raises:
        ConfigError: The address names a revision, or no repository.
        StorageError: There is no token, the hub cannot be reached, or the repository holds other files.
    """
    repository, revision = parse_repository(address)
    if revision:
        raise ConfigError(f'--to {address}: a model is pushed to the main branch; leave out @{revision}')
    if as_path(huggingface_hub.get_token()) is None:
        raise StorageError(f'--to {address}: there is no token for the hub: {LOGIN}')
    try:
        with explained(f'--to {address}'):
            files = huggingface_hub.HfApi().list_repo_files(repository)
    except MissingFileError:
        return  # it will be made
    others = [file for file in files if file not in OF_THE_HUB]
    if others and not {CONFIG, CHECKPOINT} <= set(files):
        raise StorageError(
            f'--to {address}: the repository exists and holds other files ({short_list(sorted(others))}): choose '
            'another'
        )


def push(folder: Path, address: str, private: bool = False) -> str:
    """Push a folder to a repository as one commit, which replaces all files of an earlier one.

    Args:
        folder (Path): Of a model.
        address (str): ``hf://user/name``; the repository is made if there is none.
        private (bool): Make it a private one.

    Returns:
        str: The address of its page.

    Raises:
        StorageError: The hub cannot be reached, or does not allow it.
    """
    repository, _ = parse_repository(address)
    api = huggingface_hub.HfApi()
    with explained(f'--to {address}'):
        page = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, delete_patterns='*', commit_message='mmcfmask publish'
        )
    return str(page)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Inside the context, an error of the hub becomes one line that begins with ``where`` and says what to do."""
    unreachable = None
    try:
        with offline_if_unreachable() as unreachable:
            yield
    except OfflineModeIsEnabled:
        why = f'cannot be reached ({unreachable}): check the network, or HF_ENDPOINT'
        off = 'is switched off by HF_HUB_OFFLINE: unset it'
        raise StorageError(f'{where}: the hub {why if unreachable else off}') from None
    except GatedRepoError:
        raise StorageError(f'{where}: its owner must give you access: ask for it on its page, and {LOGIN}') from None
    except RepositoryNotFoundError:
        raise MissingFileError(f'{where}: there is no such model on the hub, or it is private: {LOGIN}') from None
    except RevisionNotFoundError:
        raise MissingFileError(f'{where}: the model has no such revision') from None
    except LocalEntryNotFoundError as error:  # nothing was downloaded earlier
        if isinstance(error.__cause__, (HfHubHTTPError, OfflineModeIsEnabled)):
            with explained(where):
                raise error.__cause__ from None
        raise StorageError(f'{where}: the hub cannot be reached: check the network, or HF_ENDPOINT') from None
    except HfHubHTTPError as error:
        status = getattr(error.response, 'status_code', None)
        advice = f' ({LOGIN})' if status in (401, 403) else ''
        raise StorageError(f'{where}: the hub answers {first_line(error)}{advice}') from None
    except Exception as error:
        if not is_of_network(error):
            raise
        raise StorageError(
            f'{where}: the hub cannot be reached ({first_line(error)}): check the network, or HF_ENDPOINT'
        ) from None


def is_of_network(error: Exception) -> bool:
    """Whether an error is one of the HTTP library that the hub's library uses, which differs between its versions."""
    modules = {kind.__module__.partition('.')[0] for kind in type(error).__mro__}
    return bool(modules & {'requests', 'urllib3', 'httpx', 'httpx2', 'httpcore'}) or isinstance(error, ConnectionError)
