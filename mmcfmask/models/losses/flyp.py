"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from mmpretrain.registry import MODELS
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

from ...errors import ConfigError
from ..class_embeddings.text import text_class_weights
from ..interpolation import fingerprint, interpolate
from ..towers.loading import load_text_tower
from .base import Step
from .text import PromptLoss


def tokenize_prompts(tokenizer: Callable, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids (C, K, context length) of C names in K templates."""
    prompts = [template.format(name) for name in classnames for template in templates]
    return tokenizer(prompts).int().unflatten(0, (len(classnames), -1))


def draw_prompts(tokens: Tensor, labels: Tensor) -> Tensor:
    """A random one of the K prompts of every label: (B, L) of ``tokens`` (C, K, L) and ``labels`` (B,)."""
    chosen = torch.randint(tokens.shape[1], (len(labels),)).to(labels.device, non_blocking=True)
    return tokens[labels, chosen]


def contrast(image: Tensor, text: Tensor, model: nn.Module) -> Tensor:
    """The loss that an open_clip model was pretrained with, over the pairs of all processes: softmax (CLIP), or sigmoid
    where the model has a ``logit_bias`` (SigLIP, Zhai et al., ICCV 2023).

    Args:
        image, text (Tensor): (B, D), L2-normalised; row i of both is a pair.
        model (nn.Module): Has ``logit_scale``, and ``logit_bias`` or None.
    """
    scale, bias = model.logit_scale.exp(), getattr(model, 'logit_bias', None)
    processes = dict(rank=get_rank(), world_size=get_world_size())
    if bias is not None:
        return SigLipLoss(**processes, dist_impl='gather')(image, text, scale, bias)
    return ClipLoss(gather_with_grad=True, **processes)(image, text, scale)


@MODELS.register_module()
class FLYP(PromptLoss):
    """``loss_flyp`` = weight · the model's own contrastive loss (:func:`contrast`) between the images and one prompt
    each of their labels, with a random template (Goyal et al., "Finetune like you pretrain", CVPR 2023, section 3).

    Image tower, text tower, logit scale and bias are trained. There is no cross-entropy: set ``head.cls_weight=0``.

    No loss trains the head. Before each evaluation and saving, the current text tower makes the head from the prompts,
    so a checkpoint is tested like any other. Checkpoints also hold the text tower, to resume from; a test ignores it.

    The negatives are all other images of the batch, over all processes, including those of the same class, as in the
    paper. Accumulated gradients (``total_batch_size``) do not add negatives.

    Args:
        weight (float): Factor of the loss.
        **kwargs: Arguments of :class:`PromptLoss`.
    """

    needs_teacher = False

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        if classifier.head.cls_weight != 0:
            raise ConfigError(
                'FLYP has no cross-entropy, because its head is made by the text tower: set model.head.cls_weight=0 '
                f'(it is {classifier.head.cls_weight})'
            )
        if classifier.head.distill == 'logits':
            raise ConfigError("FLYP does not train the head, as model.head.distill='logits' would: use 'feature'")
        self.source = model_name, pretrained
        self.text, self.tokenizer = load_text_tower(model_name, pretrained)
        self.text.requires_grad_(True)
        classifier.head.requires_grad_(False)
        self.head_made_of: Tensor | None = None
        self.tokens: Tensor | None = None

    def forward(self, step: Step) -> dict[str, Tensor]:
        return self.compare(step, self.text.encode_text(self.draw(step.labels)))

    def draw(self, labels: Tensor) -> Tensor:
        """Token ids (B, context length) of a prompt of every label (B,), with a random template."""
        if self.tokens is None:  # all prompts on the device: reading labels would make the host wait in every step
            self.tokens = tokenize_prompts(self.tokenizer, self.classnames, self.templates).to(labels.device)
        return draw_prompts(self.tokens, labels)

    def compare(self, step: Step, texts: Tensor) -> dict[str, Tensor]:
        """``loss_flyp`` of the images and their texts (B, D), before L2 normalisation."""
        with torch.autocast(step.features.device.type, enabled=False):
            image, text = (F.normalize(features.float(), dim=-1) for features in (step.features, texts))
            return dict(loss_flyp=self.weight * contrast(image, text, self.text))

    def finish(self, classifier: nn.Module) -> None:
        """Make the head with the text tower, if the tower has changed since."""
        now = fingerprint(self.text)
        if self.head_made_of is None or not torch.equal(self.head_made_of, now):
            self._make_head(classifier.head, self.text)
            self.head_made_of = now

    def _make_head(self, head: nn.Module, text: nn.Module) -> None:
        device, training = text.logit_scale.device, text.training
        with torch.autocast(device.type, enabled=False):
            embeddings = text_class_weights(text.eval(), self.tokenizer, self.classnames, self.templates, device)
        text.train(training)
        head.init_class_weights(embeddings, text.logit_scale.detach().exp().item())

    def mixed_head(self, head: nn.Module, end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The state of the ``head`` for WiSE-FT, made with the text tower (1 − α) · pretrained + α · ``end``. Image
        and text tower are interpolated alike, as in the paper."""
        text, _ = load_text_tower(*self.source)
        device = next(head.parameters()).device
        text.load_state_dict(interpolate(text.state_dict(), end, alpha))
        mixed = deepcopy(head)
        self._make_head(mixed, text.to(device))
        return mixed.state_dict()
