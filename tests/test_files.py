import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from mmcfmask.errors import ConfigError, StorageError
from mmcfmask.files import (
    HOST,
    atomic_write,
    check_file_name,
    check_whole,
    explained,
    is_running,
    locked,
    new_folder,
    remove_leftovers,
    write_json,
    write_tensors,
    write_text,
)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    write_text(path, 'old')
    with pytest.raises(RuntimeError), atomic_write(path, 'w') as file:
        file.write('half')
        raise RuntimeError
    assert path.read_text() == 'old' and names(path.parent) == ['a.txt']
    with atomic_write(path, 'w') as file:
        file.write('new')
        file.flush()
        assert path.read_text() == 'old'
    assert path.read_text() == 'new' and names(path.parent) == ['a.txt']


@pytest.mark.parametrize(
    'write', [lambda path: write_text(path, 'x' * 3_000_000), lambda path: write_tensors(path, torch.zeros(500_000))]
)
def test_full_disk(tmp_path, write):
    """In a process that may write no files over 1 MB."""
    path = tmp_path / 'checkpoint.pth'
    path.write_text('the last good one')

    def child(queue):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            write(path)
        except StorageError as error:
            queue.put(str(error))

    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert message.startswith(f"cannot write '{path}'") and 'write elsewhere' in message
    assert path.read_text() == 'the last good one' and names(tmp_path) == ['checkpoint.pth']


def test_full_disk_that_a_library_meets():
    with pytest.raises(StorageError, match="'work': the disk is full: free some space"), explained('work'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(FileNotFoundError), explained('work'):
        raise FileNotFoundError(errno.ENOENT, 'No such file')


def test_what_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(StorageError, match='file/a.txt'):
        write_text(tmp_path / 'file' / 'a.txt', '')
    with pytest.raises(StorageError, match='cannot write'):
        write_text(tmp_path, '')
    with pytest.raises(StorageError, match='too long: choose a shorter'):
        write_text(tmp_path / ('x' * 300), '')
    long = tmp_path / ('é' * 120)  # 240 bytes: with the rest of the temporary name too many
    write_text(long, 'a')
    assert long.read_text() == 'a'


def test_links_and_devices(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'a.txt')
    write_text(tmp_path / 'link', 'a')
    write_text(tmp_path / 'link', 'b')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real' / 'a.txt').read_text() == 'b'
    write_text('/dev/null', 'a')
    assert not Path('/dev/null').is_file()
    (tmp_path / 'real' / 'a.txt').chmod(0o600)
    write_text(tmp_path / 'link', 'c')
    assert (tmp_path / 'real' / 'a.txt').stat().st_mode & 0o777 == 0o600


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b'caf\xe9')
    write_text(tmp_path / 'a.txt', name)
    assert (tmp_path / 'a.txt').read_bytes() == b'caf\xe9'
    write_json(tmp_path / 'a.json', dict(path=name))
    assert json.loads((tmp_path / 'a.json').read_text())['path'] == name


def test_leftovers_of_dead_processes_are_deleted(tmp_path):
    dead = next(pid for pid in range(4_000_000, 5_000_000) if not is_running(pid))
    (tmp_path / 'wise_ft').mkdir()
    for name in (
        f'.a.pth.{HOST}.{dead}-0.part',
        f'wise_ft/.b.{HOST}.{dead}-3.part',
        f'.c.{HOST}.{os.getpid()}-0.part',
        '.d.elsewhere.12-0.part',
        '.e.elsewhere.12-0.part',
        '.users.part',
        'a.pth',
    ):
        (tmp_path / name).touch()
    os.utime(tmp_path / '.e.elsewhere.12-0.part', (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [
        f'.c.{HOST}.{os.getpid()}-0.part',
        '.d.elsewhere.12-0.part',
        '.users.part',
        'a.pth',
        'wise_ft',
    ]
    assert names(tmp_path / 'wise_ft') == []


def test_every_flipped_byte_of_a_tensor_is_found(tmp_path):
    path = tmp_path / 'a.pth'
    write_tensors(path, dict(weight=torch.arange(50.0)))
    check_whole(path)
    whole = path.read_bytes()
    start = whole.index(torch.arange(50.0).numpy().tobytes())
    for place in (0, 57, 199):
        damaged = bytearray(whole)
        damaged[start + place] ^= 1
        path.write_bytes(damaged)
        os.utime(path, ns=(place, place))
        assert torch.load(path, weights_only=True)  # torch does not look
        with pytest.raises(StorageError, match=r"a.pth' is damaged: the checksum of its part '.*/data/0' is wrong"):
            check_whole(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(weight=torch.arange(50.0)), path)
    finally:
        torch.serialization.set_crc32_options(True)
    check_whole(path)  # another program's, without checksums


def hold(folder, ready, end):
    with locked(folder, 'a training'):
        ready.set()
        end.wait(60)
        os._exit(9)  # as a kill


def test_a_second_process_is_told_of_the_first(tmp_path):
    context = multiprocessing.get_context('fork')
    ready, end = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path, ready, end))
    first.start()
    assert ready.wait(60)
    with (
        pytest.raises(
            StorageError, match=rf"' is in use by a training \(process {first.pid} on .*, since 20.*\): wait until that"
        ),
        locked(tmp_path, 'a study'),
    ):
        pass
    end.set()
    first.join()
    with (
        locked(tmp_path, 'a training'),
        locked(tmp_path, 'a training'),
    ):  # the first one has died; a lock of one's own is no obstacle
        assert f'(process {os.getpid()} on' in (tmp_path / '.lock').read_text()


@pytest.mark.parametrize('name', ['', '.', '..', '../x', 'a/b', 'a\\b', 'a\nb', 'a\0b', 'x' * 300, None, 3])
def test_names_that_are_no_file_names(name):
    with pytest.raises(ConfigError, match='datasets: .*must be a plain name'):
        check_file_name(name, 'datasets')


def test_names_that_are():
    for name in ('CFMask object', 'ImageNet-V2', 'a.b', '..a', 'größe'):
        assert check_file_name(name, '') == name


def test_a_folder_appears_as_a_whole(tmp_path):
    with new_folder(tmp_path / 'a' / 'new') as part:
        (part / 'file').write_text('text')
        assert not (tmp_path / 'a' / 'new').exists()
    assert names(tmp_path / 'a') == ['new'] and (tmp_path / 'a' / 'new' / 'file').read_text() == 'text'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to('empty')
    with new_folder(tmp_path / 'link') as part:
        (part / 'file').touch()
    assert names(tmp_path / 'empty') == ['file'] and (tmp_path / 'link').is_symlink()
    with pytest.raises(RuntimeError), new_folder(tmp_path / 'half') as part:
        (part / 'file').touch()
        raise RuntimeError
    assert names(tmp_path) == ['a', 'empty', 'link']


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').touch()
    (tmp_path / 'file').touch()
    wrong = {'full': 'not empty: choose another with --to', 'file': '--to .* is a file', 'file/a': 'cannot write'}
    for name, message in wrong.items():
        with pytest.raises(StorageError, match=message), new_folder(tmp_path / name, '--to'):
            raise AssertionError
    assert names(tmp_path) == ['file', 'full'] and names(tmp_path / 'full') == ['mine']
