"""Any open_clip image tower as an mmpretrain backbone."""

from __future__ import annotations

from functools import cached_property

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS

from ...errors import ConfigError
from ...ranges import Pixels, Stages
from .fast_path import make_lean
from .layers import find_depth, freeze_stages, keep_frozen_mode, layer_depths
from .loading import load_image_tower


@MODELS.register_module()
class OpenCLIPBackbone(BaseBackbone):
    """The image tower of an open_clip model, with its projection.

    ``forward`` takes normalised images (B, 3, H, W) of the tower's image size and returns a tuple with one (B, D)
    tensor: the image embedding before L2 normalisation, as ``open_clip_model.encode_image(images)``. The weights are
    loaded at construction, so a model that is only tested has them too; ``init_weights`` leaves them alone.

    Args:
        model_name (str): Name of an open_clip model, e.g. ``'ViT-B-16-quickgelu'``.
        pretrained (str, optional): Tag, path or ``'shapes'``, see
            :func:`mmcfmask.models.towers.loading.load_image_tower`. Defaults to None: random weights.
        load (bool): Load the weights that ``pretrained`` names. False leaves them random, for a checkpoint to replace;
            the tag still decides the activation. Defaults to True.
        frozen (bool): Freeze the tower (linear probing): no gradients, always in eval mode. Defaults to False.
        frozen_stages (int): Freeze the stem (0), or the stem and the first stages (1, 2, …), in eval mode; the stages
            of a ViT are its blocks. Defaults to -1: none.
        grad_checkpointing (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        compile (bool): Run the operations between the matrix products of a block through ``torch.compile``. For GPUs;
            on a CPU it is no faster. All blocks share the code, which is compiled in the first step. Needs torch ≥ 2.5.
            Defaults to False.
        recompute (bool, optional): Recompute cheap activations (QuickGELU, layer norms) in the backward pass. Saves up
            to a third of the memory and costs a few percent of the time, a tenth on a GPU. Defaults to None: True on
            CPUs and on GPUs with less than 40 GB.
        lean (bool): Use the faster forward and backward pass of :mod:`mmcfmask.models.towers.fast_path`. False: the
            tower is open_clip's own module. Defaults to True.
        image_size (int | tuple[int, int], optional): Height and width of the images, a multiple of the patch size. The
            position embeddings are resized as open_clip does (bicubic). Defaults to None: the model's own size.
        init_cfg (dict, optional): Initialisation config, applied on top of the loaded weights. Defaults to None.

    Attributes:
        visual (nn.Module): The tower.
        embed_dims (int): D.
        image_size (tuple[int, int]): Height and width of the input.
        patch_size (tuple[int, int] | None): None for convolutional towers.
        logit_scale (float): Factor of the cosine similarities of the pretrained model (about 100).
        mean, std (tuple[float, float, float] | None): Normalisation of RGB images in 0-1 that the weights were trained
            with. None if ``pretrained`` is a path or None.

    Raises:
        ConfigError: Unknown name or tag, weights that do not fit, ``compile`` for a tower that is not a plain ViT, or
            ``compile`` or ``recompute`` with ``lean=False``.
        MissingFileError: The weights are not on this machine and cannot be downloaded.

    Examples:
        >>> backbone = OpenCLIPBackbone('ViT-B-16-quickgelu')
        >>> backbone(torch.rand(2, 3, 224, 224))[0].shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        model_name: str,
        pretrained: str | None = None,
        load: bool = True,
        frozen: bool = False,
        grad_checkpointing: bool = False,
        compile: bool = False,
        recompute: bool | None = None,
        lean: bool = True,
        image_size: Pixels | tuple[Pixels, Pixels] | None = None,
        frozen_stages: Stages = -1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        tower = load_image_tower(model_name, pretrained, load, image_size)
        self.model_name = model_name
        self.pretrained = pretrained
        self.frozen = frozen
        self.grad_checkpointing = grad_checkpointing
        self.visual = tower.visual
        self.embed_dims = tower.embed_dim
        self.out_indices = (-1,)  # of the features, by which mmpretrain's t-SNE calls them
        self.image_size = tower.image_size
        self.patch_size = tower.patch_size
        self.logit_scale = tower.logit_scale
        self.mean = tower.mean
        self.std = tower.std
        if lean:
            make_lean(self.visual, compile, recompute)
        elif compile or recompute:
            raise ConfigError('compile and recompute are parts of the fast path: leave them out, or set lean=True')
        if grad_checkpointing:
            self.visual.set_grad_checkpointing(True)
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            freeze_stages(self, frozen_stages)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def init_weights(self) -> None:
        """Apply ``init_cfg``, if there is one. The pretrained weights are already loaded."""
        if self.init_cfg is not None:
            super().init_weights()

    def train(self, mode: bool = True) -> OpenCLIPBackbone:
        super().train(mode and not self.frozen)
        if self.frozen_stages >= 0:
            keep_frozen_mode(self.visual)
        return self

    @cached_property
    def _depths(self) -> dict[str, int]:
        return layer_depths(self)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and the number of depths, for learning rates by layer; see
        :func:`.layers.layer_depths`."""
        return find_depth(self._depths, param_name, prefix)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if tuple(x.shape[-2:]) != self.image_size:
            height, width = x.shape[-2:]
            raise ConfigError(
                f'{self.model_name!r} takes images of {self.image_size[0]}x{self.image_size[1]} pixels, got '
                f'{height}x{width}: set image_size of the backbone and of ResizeCenterCrop in the pipeline to the same '
                f'value (one variable of our configs, image_size={height if height == width else (height, width)}).'
            )
        frozen_stem = not next(self.visual.parameters()).requires_grad
        if self.grad_checkpointing and frozen_stem and torch.is_grad_enabled() and not x.requires_grad:
            # A recorder lets the attention of frozen blocks require a gradient; when a checkpoint runs them again, only
            # a gradient of their input does.
            x = x.detach().requires_grad_()
        features = self.visual(x)
        # CoCa towers return their tokens as well.
        return (features[0] if isinstance(features, tuple) else features,)
