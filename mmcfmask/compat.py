"""Work-arounds for versions of other packages. Each one says when it can be deleted."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import inspect
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock


def load_yapf(patience: float = 30.0) -> None:
    """Import yapf, which formats the configs of mmengine, even while another process imports it too.

    The first import on a machine writes yapf's grammar to a cache folder. A process that reads the file before it is
    complete fails (google/yapf#1204), and a launcher starts many processes at once. So this retries for ``patience``
    seconds. It must run before mmengine is imported. Ends when yapf writes its cache atomically.

    Raises:
        RuntimeError: The cache stays unreadable.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            import yapf  # noqa: F401

            return
        except (EOFError, pickle.UnpicklingError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    "yapf's cache is damaged: delete the folder YAPF in the user's cache folder (~/.cache)"
                ) from error
            time.sleep(0.1)


load_yapf()

# mmcv-lite warns on every import that it has no compiled operators, which nothing here uses. This must run before mmcv
# is imported. Ends when mmcv-lite is silent.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# mmengine says with every run that it sets these variables, and passes an argument to DDP that torch renamed. Ends when
# mmengine is silent.
warnings.filterwarnings('ignore', message=r'Setting (OMP|MKL)_NUM_THREADS environment variable')
warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated', category=FutureWarning)

import mmengine.dataset.base_dataset
import mmengine.fileio.file_client
import mmengine.fileio.handlers.yaml_handler
import mmengine.runner
import mmengine.runner.checkpoint
import mmengine.runner.runner
import mmpretrain.models
import numpy as np
import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.device import get_device
from mmengine.dist import init_dist, is_main_process
from mmengine.logging import HistoryBuffer
from mmpretrain import ImageClassificationInferencer
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import nn

from .errors import MissingFileError
from .files import write_tensors, write_text
from .renamed import CONFIGS
from .safe_yaml import SafeYAMLLoader


@contextmanager
def no_fused_transformer_layers() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` call ``scaled_dot_product_attention``, not its fused inference kernel.

    The second branch ends with torch < 2.3, which lacks the switch. There a module in training mode never takes the
    fused path.
    """
    if hasattr(torch.backends, 'mha'):
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
    else:
        attribute, original = 'forward', nn.MultiheadAttention.forward

        def forward(self, *args, **kwargs):
            training, self.training = self.training, True
            dropout, self.dropout = self.dropout, self.dropout if training else 0.0
            try:
                return original(self, *args, **kwargs)
            finally:
                self.training, self.dropout = training, dropout

        setattr(nn.MultiheadAttention, attribute, forward)
        try:
            yield
        finally:
            setattr(nn.MultiheadAttention, attribute, original)


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` traces this call. Ends with torch < 2.3, which has another name."""
    return torch.compiler.is_compiling() if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling()


def keep_buffers_of_compiled_code() -> None:
    """Let compiled code run backward twice, for the relevance map and for the loss.

    torch >= 2.6 overwrites results of the first backward pass that a second one needs ("donated buffers"), and refuses
    the second. Ends when torch has a public switch for it.
    """
    import torch._functorch.config as config

    if hasattr(config, 'donated_buffer'):
        config.donated_buffer = False


def keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed tensors, on Linux with glibc. Elsewhere nothing happens.

    By default glibc maps blocks over 32 MB anew for every tensor of that size, and the kernel fills them with zeros
    page by page. Ends when torch has a caching allocator for CPUs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, max_mapped_blocks = -1, -4  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(max_mapped_blocks, 0)


def can_fuse_optimizer() -> bool:
    """Whether torch has a fused AdamW for this machine's device. Ends with torch < 2.4, which has none for CPUs."""
    try:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1, device=get_device()))], fused=True)
    except RuntimeError:
        return False
    return True


def allow_config_inheritance() -> None:
    """Let any config say ``_base_ = 'mmcfmask::cfmask_vitb16.py'``.

    mmengine 0.10 inherits only from the packages of a fixed list, requires a folder in the name, and needs
    ``pkg_resources``, which new environments lack. Ends when mmengine accepts any installed package.
    """
    original = Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, found, name = cfg_path.partition('::')
        if not found or package != 'mmcfmask':
            return original(cfg_path, filename)
        path = Path(__file__).parent / '.mim' / 'configs' / name
        if not path.is_file():
            if name in CONFIGS:
                raise MissingFileError(f'{filename} inherits from {cfg_path!r}, which is now mmcfmask::{CONFIGS[name]}')
            known = sorted(str(file.relative_to(path.parents[0])) for file in path.parent.glob('*.py'))
            raise MissingFileError(
                f'{filename} inherits from {cfg_path!r}, which does not exist; there are: {", ".join(known)}'
            )
        return str(path), None

    Config._get_cfg_path = staticmethod(get_cfg_path)


def reread_config_that_imports() -> None:
    """If a config that is being read imports this package, let the program get what it reads as from now on.

    mmengine evaluates the ``_base_`` and the ``custom_imports`` of a config while it reads the file, so that the
    functions above come too late for that file. Ends with the last of them.
    """
    frame, reading = inspect.currentframe(), None
    while frame is not None:
        if frame.f_code.co_name == 'fromfile' and frame.f_globals.get('__name__') == Config.__module__:
            reading = str(frame.f_locals['filename'])
        frame = frame.f_back
    if reading is None:
        return
    original = Config.__init__

    def init(self, cfg_dict=None, cfg_text=None, filename=None, env_variables=None, **kwargs) -> None:
        if filename == reading:
            Config.__init__ = original
            again = Config.fromfile(filename)
            cfg_dict, cfg_text, env_variables = again._cfg_dict, again.text, again.env_variables
        original(self, cfg_dict, cfg_text, filename, env_variables, **kwargs)

    Config.__init__ = init


def drop_leftover_deletes() -> None:
    """Let ``Config.fromfile`` drop every ``_delete_`` that has done its work.

    mmengine 0.10 leaves ``_delete_`` in a dict that is new, or that is inside of another dict with ``_delete_``, and a
    class then gets it as an argument. Ends when mmengine drops it.
    """
    original = Config._file2dict

    def file2dict(*args, **kwargs) -> tuple[dict, str, dict]:
        cfg, text, environment = original(*args, **kwargs)
        drop_deletes(cfg)
        return cfg, text, environment

    Config._file2dict = staticmethod(file2dict)


def drop_deletes(node) -> None:
    """Drop ``_delete_`` from all dicts in a config, in place. If the config imports its types, this imports them."""
    if isinstance(node, (dict, Config)):
        node.pop('_delete_', None)
    for value in node.values() if isinstance(node, (dict, Config)) else node if isinstance(node, (list, tuple)) else ():
        drop_deletes(value)


def read_yaml_safely() -> None:
    """Let mmengine read YAML with :class:`.safe_yaml.SafeYAMLLoader`, for configs and their bases.

    mmengine 0.10 uses ``yaml.CLoader``, whose tags run code. Ends when mmengine uses a safe loader.
    """
    mmengine.fileio.handlers.yaml_handler.Loader = SafeYAMLLoader


def register_clip_projection() -> None:
    """Register mmpretrain's ``CLIPProjection`` neck without the optional dependencies of its multimodal models.

    mmpretrain 1.2 imports its package only if transformers is installed. Ends when mmpretrain always registers its
    necks.
    """
    if MODELS.get('CLIPProjection') is None:
        path = Path(mmpretrain.__file__).parent / 'models' / 'multimodal' / 'clip' / 'clip_transformer.py'
        spec = importlib.util.spec_from_file_location('mmcfmask._mmpretrain_clip_transformer', path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def loads_file(transform: dict | object) -> bool:
    """Whether a transform, or its config, reads an image file."""
    kind = transform['type'] if isinstance(transform, dict) else type(transform)
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2].startswith('Load')


def infer_by_the_pipeline() -> None:
    """Let mmpretrain's inferencer read files with the pipeline of its config, so that it predicts what a test does.

    mmpretrain 1.2 reads them with OpenCV and rotates them by EXIF, whatever the pipeline says. Arrays (in BGR) skip the
    reading, as before. Ends when the inferencer runs the whole pipeline.
    """
    original = ImageClassificationInferencer.preprocess

    def preprocess(self, inputs: list, batch_size: int = 1) -> Iterator:
        steps = self.config.test_dataloader.dataset.pipeline
        if not any(map(loads_file, steps)):
            yield from original(self, inputs, batch_size)
            return
        from_file = Compose([TRANSFORMS.build(step) for step in steps])

        def load(image: str | os.PathLike | np.ndarray) -> dict:
            if isinstance(image, np.ndarray):
                return self.pipeline(dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2]))
            return from_file(dict(img_path=os.fspath(image)))

        yield from map(default_collate, self._get_chunk_data(map(load, inputs), batch_size))

    ImageClassificationInferencer.preprocess = preprocess


def silence_file_client() -> None:
    """Silence deprecation warnings that users cannot act on.

    The checkpoint and logger hooks of mmengine 0.10 build its deprecated ``FileClient`` at every start. Ends when they
    do not.
    """
    mmengine.fileio.file_client.print_log = lambda *args, **kwargs: None


def build_datasets_without_garbage_collection() -> None:
    """Let mmengine build a dataset without a full garbage collection, a third of a second with a model in memory.

    mmengine 0.10 collects to free the list of images, which has no cycles, so that it is free already. A test builds
    many datasets. Ends when mmengine does not collect.
    """
    mmengine.dataset.base_dataset.gc = SimpleNamespace(collect=lambda: 0)


def start_process_group_without_gpu(launcher: str) -> None:
    """Start a gloo process group on a machine without a GPU.

    ``mmengine.dist.init_dist`` calls ``torch.cuda.set_device`` for every backend. The Runner does not call it if a
    group exists. Ends when mmengine supports launchers on CPUs.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi'.
    """
    if launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
    else:
        with mock.patch('torch.cuda.set_device'):
            init_dist(launcher, backend='gloo')
    # The threads of gloo must end before the interpreter, or a finished run may still abort ("terminate called without
    # an active exception").
    atexit.register(end_process_group)


def end_process_group() -> None:
    """Leave the process group, if there is one.

    Called only after a run that succeeded: NCCL waits for all processes. Without the call NCCL warns.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def keep_checkpoints_plain() -> None:
    """Let ``torch.load(weights_only=True)`` read every checkpoint of mmengine, and write checkpoints atomically.

    ``weights_only=True`` is the default since torch 2.6. mmengine 0.10 stores ``HistoryBuffer`` objects and numpy
    scalars in ``message_hub``, so its own resume fails. Here they are saved as tensors and plain numbers, and rebuilt
    when a checkpoint is loaded. mmengine also overwrites the old file, from a second copy in memory; here
    :func:`.files.write_tensors` writes. Ends when mmengine does neither.
    """
    save_to_backend, load_file = mmengine.runner.checkpoint.save_checkpoint, mmengine.runner.checkpoint._load_checkpoint

    def save(
        checkpoint: dict, filename: str, file_client_args: dict | None = None, backend_args: dict | None = None
    ) -> None:
        if not is_main_process():  # of a sharded model, all processes come here
            return
        checkpoint = make_plain(checkpoint)
        if file_client_args or backend_args or '://' in filename:
            save_to_backend(checkpoint, filename, file_client_args, backend_args)
        else:
            write_tensors(filename, checkpoint)

    def load(*args, **kwargs) -> dict:
        return rebuild(load_file(*args, **kwargs))

    for module in (mmengine.runner, mmengine.runner.runner, mmengine.runner.checkpoint):
        module.save_checkpoint = save
    mmengine.runner.runner._load_checkpoint = load


def make_plain(checkpoint: dict) -> dict:
    """Replace the objects in a checkpoint of mmengine by tensors and plain values; returns a copy."""
    checkpoint = dict(checkpoint)
    if 'log_scalars' in checkpoint.get('message_hub', {}):
        hub = checkpoint['message_hub']
        scalars = {
            name: dict(
                zip(('log', 'count'), (torch.as_tensor(values) for values in buffer.data)), max_length=buffer.max_length
            )
            for name, buffer in hub['log_scalars'].items()
        }
        checkpoint['message_hub'] = {**hub, 'log_scalars': scalars}
    return {key: value if key == 'state_dict' else _plain(value) for key, value in checkpoint.items()}


def rebuild(checkpoint: dict) -> dict:
    """Rebuild the objects that :func:`make_plain` replaced, in place."""
    scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
    for name, saved in scalars.items():
        if isinstance(saved, dict):
            scalars[name] = HistoryBuffer(saved['log'].cpu().numpy(), saved['count'].cpu().numpy(), saved['max_length'])
    return checkpoint


def write_configs_whole() -> None:
    """Let ``Config.dump`` write atomically, also to file names that are not UTF-8. Ends when mmengine does."""
    original = Config.dump

    def dump(self, file=None) -> str | None:
        if file is None or not str(file).endswith('.py'):
            return original(self, file)
        write_text(file, self.pretty_text)

    Config.dump = dump


def _plain(value):
    """Convert a value to what ``weights_only`` accepts.

    That is: no numpy, no mapping but dict, and no functions (schedulers set their annealing function when they are
    built).
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
