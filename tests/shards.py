"""Made-up shards: the same images as class folders, WebDataset's tar files, Parquet files and Arrow files."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

SIZES = dict(cat=5, dog=7, emu=6)


def image_bytes(seed, suffix='PNG'):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, suffix)
    return content.getvalue()


def rows(sizes=None):
    """(folder, name, label, content) of every image."""
    sizes = sizes or SIZES
    return [
        (folder, f'{folder}_{number}.png', label, image_bytes(100 * label + number))
        for label, (folder, size) in enumerate(sizes.items())
        for number in range(size)
    ]


def make_folders(root, sizes=None):
    for folder, name, _, content in rows(sizes):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(content)
    return root


def write_tar(path, members):
    """Members are (name, content), in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_tars(root, samples, per_shard=4):
    """Shards ``0000.tar``, … of samples: dicts of extension to bytes or text, with their ``key``."""
    for start in range(0, len(samples), per_shard):
        members = [
            (f'{sample["key"]}.{extension}', content if isinstance(content, bytes) else content.encode())
            for sample in samples[start : start + per_shard]
            for extension, content in sample.items()
            if extension != 'key'
        ]
        write_tar(root / f'{start // per_shard:04d}.tar', members)
    return root


def make_table(labels, contents, paths=None, names=None, column='label'):
    """A table as of the Hugging Face hub; ``names`` are those of its ClassLabel."""
    import pyarrow as pa

    paths = paths or [f'{number}.png' for number in range(len(labels))]
    images = pa.array(
        [dict(bytes=content, path=path) for content, path in zip(contents, paths)],
        pa.struct([('bytes', pa.binary()), ('path', pa.string())]),
    )
    table = pa.table({'image': images, column: pa.array(labels)})
    feature = dict(names=names, _type='ClassLabel') if names else dict(dtype='int64', _type='Value')
    about = dict(info=dict(features={'image': dict(_type='Image'), column: feature}))
    return table.replace_schema_metadata(dict(huggingface=json.dumps(about)))


def write_parquet(path, table, group=4):
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def write_arrow(path, table, batch=4, as_file=False):
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with pa.OSFile(str(path), 'wb') as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path
