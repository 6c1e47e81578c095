"""The layers of a tower, from its stem to its last block."""

from __future__ import annotations

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from timm.models._manipulate import group_with_matcher
from torch import nn

from ...counterfactual.towers import inner_tower
from ...errors import ConfigError


def layer_depths(tower: nn.Module, stages: bool = False) -> dict[str, int]:
    """The depth of every parameter of a tower of open_clip or timm: 0 is the stem, which embeds the patches and their
    positions, then come the blocks, and last what follows them.

    A tower of timm says itself which parameters are of one layer (``group_matcher``).

    Args:
        tower (nn.Module): An ``OpenCLIPBackbone``, or a backbone with a ``timm_model``.
        stages (bool): Count stages (of a ResNet, ConvNeXt, Swin, …) in place of blocks. A ViT has no stages but its
            blocks.

    Returns:
        dict[str, int]: By name. The depth of ``''`` is that of what follows the blocks: an attention pool, the
        projection, the head. Parameters that are not named have this depth too.

    Raises:
        ConfigError: A tower that does not say its layers.
    """
    inner = inner_tower(tower)
    matcher = _matcher(inner, stages)
    prefix = next(f'{name}.' if name else '' for name, module in tower.named_modules() if module is inner)
    names = ['', *(name for name, _ in inner.named_parameters())]  # '' matches nothing, so it is last
    depths = group_with_matcher(((name, None) for name in names), matcher, reverse=True)
    return {f'{prefix}{name}' if name else '': depth for name, depth in depths.items()}


def _matcher(inner: nn.Module, stages: bool) -> dict:
    """Patterns of timm's ``group_with_matcher`` for the names of the parameters."""
    if isinstance(inner, VisionTransformer):
        stem = r'class_embedding|positional_embedding|conv1|ln_pre'
        return dict(stem=stem, blocks=r'transformer\.resblocks\.(\d+)')
    if isinstance(inner, ModifiedResNet):
        return dict(stem=r'(?:conv|bn)\d', blocks=r'layer(\d)' if stages else r'layer(\d)\.(\d+)')
    if not hasattr(inner, 'group_matcher'):
        raise ConfigError(
            f'{type(inner).__name__} does not say which of its parameters are of one layer: leave out frozen_stages '
            'and learning rates by layer'
        )
    return inner.group_matcher(coarse=stages)


def find_depth(depths: dict[str, int], param_name: str, prefix: str) -> tuple[int, int]:
    """Depth of a parameter, and the number of depths, as mmpretrain's ``get_layer_depth`` returns them.

    Args:
        depths (dict[str, int]): From :func:`layer_depths`.
        param_name (str): A name in the classifier.
        prefix (str): With which names of the tower begin. All others are of the last depth.
    """
    name = param_name[len(prefix) :] if param_name.startswith(prefix) else ''
    return depths.get(name, depths['']), depths[''] + 1


def freeze_stages(tower: nn.Module, last: int) -> None:
    """Freeze the stem of a tower (``last=0``) and its first ``last`` stages, which are the blocks of a ViT.

    Raises:
        ConfigError: More stages than there are, or a tower that does not say its layers.
    """
    depths = layer_depths(tower, stages=True)
    if last >= depths['']:
        raise ConfigError(
            f'frozen_stages={last}: this tower has {depths[""] - 1} stages (0 freezes the stem alone, -1 nothing). To '
            'freeze all of it set frozen=True'
        )
    for name, parameter in tower.named_parameters():
        if depths.get(name, depths['']) <= last:
            parameter.requires_grad_(False)


def keep_frozen_mode(tower: nn.Module) -> None:
    """Put the modules whose parameters are all frozen into eval mode, so that batch norms in them keep their
    statistics. To be called after ``train()``."""
    for module in tower.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
