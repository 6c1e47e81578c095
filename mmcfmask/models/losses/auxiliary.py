"""Losses of other methods, beside the cross-entropy and the distillation of the classifier.

Plain functions on tensors come first, then the modules that a config names in ``auxiliary=[dict(type=…), …]``. A method
of one's own is such a module: what it needs of the pre-trained model it takes in ``start``, and ``forward`` gets
everything a training step has computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from mmpretrain.registry import MODELS
from open_clip import ClipLoss
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import Count, NonNegative
from ..class_embeddings.class_weights import (
    resolve_classnames,
    resolve_templates,
    text_class_weights,
    text_embeddings,
    text_source,
)
from ..head import knowledge_distillation
from ..interpolation import fingerprint, interpolate
from ..towers.loading import NoTextTowerError, load_text_tower


def l2_sp(weights: Iterable[Tensor], start: Iterable[Tensor]) -> Tensor:
    """½ ‖w − w⁰‖² over all weights: the L²-SP penalty (Li et al., "Explicit Inductive Bias for Transfer Learning with
    Convolutional Networks", ICML 2018, section 3) without its factor, in float32.

    Args:
        weights, start (Iterable[Tensor]): Of the same shapes, in the same order.
    """
    return 0.5 * torch.stack([(w.float() - w0.float()).square().sum() for w, w0 in zip(weights, start)]).sum()


def cosines(features: Tensor, directions: Tensor) -> Tensor:
    """Cosine similarities (B, K), float32 under autocast too.

    Args:
        features (Tensor): (B, D).
        directions (Tensor): (K, D), rows L2-normalised.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1) @ directions.float().T


def context_divergence(student: Tensor, teacher: Tensor, contexts: Tensor, scale: float) -> Tensor:
    """KL(p(x; θ₀) ‖ p(x; θ)), mean over the batch, of the distributions over contexts p(x; θ) = softmax(scale ·
    cos(f(x), contexts)) (Mao et al., "Context-Aware Robust Fine-Tuning", IJCV 2024, section 3).

    Args:
        student, teacher (Tensor): (B, D) features of the same images.
        contexts (Tensor): (K, D) context embeddings, rows L2-normalised.
        scale (float): CLIP's factor of the cosine similarities.
    """
    return knowledge_distillation(
        scale * cosines(student, contexts), scale * cosines(teacher, contexts), temperature=1.0
    )


def energy_gap(student: Tensor, teacher: Tensor, texts: Tensor, scale: float) -> Tensor:
    """1/(2M) ‖v(x; θ) − v(x; θ₀)‖², mean over the batch, where v are the M scaled similarities to random texts (Nam et
    al., "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance", ICLR 2024, section 5.1: the
    regulariser R̂).

    Args:
        student, teacher (Tensor): (B, D) features of the same images.
        texts (Tensor): (M, D) text embeddings, rows L2-normalised.
        scale (float): CLIP's factor of the cosine similarities.
    """
    gap = scale * (cosines(student, texts) - cosines(teacher, texts))
    return 0.5 * gap.square().mean()  # the mean over texts is the 1/M


def random_tokens(
    num: int, length: int, context_length: int, start: int, end: int, device: torch.device | str = 'cpu'
) -> Tensor:
    """Texts of random tokens (``num``, ``context_length``), int64: start, ``length`` tokens drawn uniformly from 0 …
    ``start`` − 1, end, and zeros. In CLIP's vocabulary the two special tokens are the last ones."""
    words = torch.randint(start, (num, length), device=device)
    tokens = F.pad(words, (1, context_length - length - 1))
    tokens[:, 0], tokens[:, length + 1] = start, end
    return tokens


@dataclass
class Step:
    """What a training step has when it asks for the auxiliary losses.

    Attributes:
        classifier (CounterfactualClassifier): The model, with its ``teacher``.
        images (Tensor): (B, 3, H, W), normalised.
        labels (Tensor): (B,) int64.
        features (Tensor): (B, D) of the images, before L2 normalisation.
        logits (Tensor): (B, C) of the images.
        teacher_features (Tensor): (B, D) of the frozen start on the same images; computed when first asked for.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor

    @cached_property
    def teacher_features(self) -> Tensor:
        return self.classifier.teacher(self.images)


class LossTerm(nn.Module):
    """One method's loss. Trainable weights of its own are parameters like any other: in the optimizer, in checkpoints,
    in moving averages. What is frozen belongs to the classifier's teacher, which is in none of them, or into buffers
    with ``persistent=False``.

    Args:
        weight (float): Factor of the loss.
    """

    needs_teacher = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigError(f'{type(self).__name__}: weight={weight} must not be negative')
        self.weight = weight

    def start(self, classifier: nn.Module) -> None:
        """Take what is needed from the classifier, which holds its pre-trained weights now; called once.

        Raises:
            ValueError: The classifier lacks something.
        """
        if self.needs_teacher and classifier.teacher is None:
            raise ConfigError(
                f"{type(self).__name__} compares with the frozen start: set model.teacher=dict(type='OpenCLIPTeacher')"
            )
        if self.needs_teacher and not classifier.teacher.is_start:
            raise ConfigError(
                f'{type(self).__name__} compares with the frozen start, but the teacher is another model: '
                'leave out its model_name'
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Losses by name (``loss_…``), to be added to the others."""
        raise NotImplementedError

    def finish(self, classifier: nn.Module) -> None:
        """Bring the classifier up to date before it is evaluated or saved, where the loss trains something in its
        place."""


@MODELS.register_module()
class L2SP(LossTerm):
    """``loss_l2sp`` = α · :func:`l2_sp` of the tower + β · ½ ‖w_head − w_head⁰‖².

    Li et al. decay a head that starts at random towards 0. The head here starts from class embeddings, so it is held to
    that start as the tower is; ``head='zero'`` is theirs. It stands in for weight decay: set
    ``optim_wrapper.optimizer.weight_decay=0``.

    Args:
        alpha (float): α, of the tower and the neck.
        beta (float): β, of the head.
        head (str): 'start' or 'zero': what the weights of the head are held to.
    """

    def __init__(self, alpha: NonNegative = 0.1, beta: NonNegative = 0.01, head: str = 'start') -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ConfigError(f'L2SP: alpha={alpha} and beta={beta} must not be negative')
        if head not in ('start', 'zero'):
            raise ConfigError(f'L2SP: unknown head={head!r}: choose "start" or "zero"')
        self.alpha = alpha
        self.beta = beta
        self.head = head

    def forward(self, step: Step) -> dict[str, Tensor]:
        model, teacher = step.classifier, step.classifier.teacher
        pairs = [(model.backbone, teacher.backbone)] + ([(model.neck, teacher.neck)] if model.neck is not None else [])
        tower, tower_start = ([p for module in modules for p in module.parameters()] for modules in zip(*pairs))
        head = list(model.head.parameters())
        head_start = list(teacher.head.parameters()) if self.head == 'start' else [torch.zeros_like(w) for w in head]
        return dict(loss_l2sp=self.alpha * l2_sp(tower, tower_start) + self.beta * l2_sp(head, head_start))


class TextLoss(LossTerm):
    """A loss that needs the text tower that belongs to the image tower.

    Args:
        weight (float): Factor of the loss.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(self, weight: NonNegative = 1.0, model_name: str | None = None, pretrained: str | None = None) -> None:
        super().__init__(weight)
        self.model_name = model_name
        self.pretrained = pretrained

    def start(self, classifier: nn.Module) -> None:
        super().start(classifier)
        self.scale = getattr(classifier.backbone, 'logit_scale', 100.0)
        try:
            self.start_text(classifier, *text_source(classifier, self.model_name, self.pretrained))
        except NoTextTowerError as error:
            raise NoTextTowerError(
                f'{type(self).__name__} needs a text tower, but {error}: choose weights of the whole model, or a '
                'method without texts (docs/methods.md lists them)'
            ) from None

    def start_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        """Take what is needed from a text tower, by its name and weights.

        Raises:
            NoTextTowerError: There is none in the weights.
        """
        raise NotImplementedError


class PromptLoss(TextLoss):
    """A loss of prompts: class names in templates.

    Args:
        weight (float): Factor of the loss.
        classnames, templates, cache_dir: As in ``class_weights=dict(type='text', …)``. Default to those of the head,
            where it starts from text.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(
        self,
        weight: float = 1.0,
        classnames: str | Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        model_name: str | None = None,
        pretrained: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(weight, model_name, pretrained)
        self.classnames = classnames
        self.templates = templates
        self.cache_dir = cache_dir

    def start(self, classifier: nn.Module) -> None:
        texts = classifier.head.class_weights or {}
        texts = dict(texts) if texts.get('type') == 'text' else {}
        for name in ('classnames', 'templates', 'model_name', 'pretrained', 'cache_dir'):
            if getattr(self, name) is None:
                setattr(self, name, texts.get(name))
        if self.classnames is None:
            raise ConfigError(
                f'{type(self).__name__} needs prompts: give it classnames=[…] and templates=…, or start the head from '
                'them '
                "with class_weights=dict(type='text', …)"
            )
        self.classnames = resolve_classnames(self.classnames)
        self.templates = resolve_templates('openai' if self.templates is None else self.templates)
        if len(self.classnames) != classifier.head.num_classes:
            raise ConfigError(
                f'{type(self).__name__} has {len(self.classnames)} classnames, but the head has '
                f'num_classes={classifier.head.num_classes}'
            )
        super().start(classifier)


@MODELS.register_module()
class CARFT(PromptLoss):
    """CAR-FT: ``loss_carft`` = weight · :func:`context_divergence`. A context is a template; its embedding is the mean
    over the classes of the texts that it makes, from the frozen text tower, computed once and cached.

    Args:
        weight (float): α of the paper.
        **kwargs: Those of :class:`PromptLoss`.
    """

    def start_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        contexts = text_embeddings(
            classifier, 'context', self.classnames, self.templates, model_name, pretrained, self.cache_dir
        )
        self.register_buffer('contexts', contexts, persistent=False)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return dict(
            loss_carft=self.weight * context_divergence(step.features, step.teacher_features, self.contexts, self.scale)
        )


@MODELS.register_module()
class LipsumFT(TextLoss):
    """Lipsum-FT: ``loss_lipsum`` = weight · :func:`energy_gap` on texts of random tokens, new ones in every step.

    Args:
        weight (float): λ of the paper.
        num_texts (int): M.
        length (int): L, number of random tokens of a text.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(
        self,
        weight: NonNegative = 1.0,
        num_texts: Count = 80,
        length: Count = 8,
        model_name: str | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(weight, model_name, pretrained)
        if num_texts < 1 or length < 1:
            raise ConfigError(f'LipsumFT: num_texts={num_texts} and length={length} must be positive')
        self.num_texts = num_texts
        self.length = length

    def start_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        classifier.teacher.load_text(model_name, pretrained)
        tokenizer = classifier.teacher.tokenizer
        self.special = getattr(tokenizer, 'sot_token_id', None), getattr(tokenizer, 'eot_token_id', None)
        if None in self.special:
            raise ConfigError(
                f"LipsumFT draws tokens of CLIP's own vocabulary, but {model_name!r} has a {type(tokenizer).__name__}"
            )
        self.context_length = tokenizer(['']).shape[1]
        if self.length + 2 > self.context_length:
            raise ConfigError(
                f'LipsumFT: length={self.length}, but the texts of {model_name!r} have {self.context_length} tokens '
                'with the first and the last'
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        tokens = random_tokens(
            self.num_texts, self.length, self.context_length, *self.special, device=step.features.device
        )
        texts = step.classifier.teacher.encode_text(tokens)
        return dict(loss_lipsum=self.weight * energy_gap(step.features, step.teacher_features, texts, self.scale))


@MODELS.register_module()
class FLYP(PromptLoss):
    """FLYP (Goyal et al., "Finetune like you pretrain", CVPR 2023, section 3): ``loss_flyp`` = weight · CLIP's own
    symmetric contrastive loss of the images and one prompt each of their labels, by a random template. Image tower,
    text tower and logit scale are trained, and there is no cross-entropy: set ``head.cls_weight=0``.

    The head takes part in no loss. Before evaluation and saving it is made from the prompts by the text tower as it is
    then, so a checkpoint is tested as any other. The text tower is in checkpoints too, to resume from, and is left out
    when one is tested.

    The other images of the batch, over all processes, are the negatives; those of the same class too, as in the paper.
    Accumulated gradients (``total_batch_size``) do not add negatives.

    Args:
        weight (float): Factor of the loss.
        **kwargs: Those of :class:`PromptLoss`.
    """

    needs_teacher = False

    def start_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        if classifier.head.cls_weight != 0:
            raise ConfigError(
                'FLYP has no cross-entropy, because its head is made by the text tower: set model.head.cls_weight=0 '
                f'(it is {classifier.head.cls_weight})'
            )
        if classifier.teacher is not None and classifier.head.distill == 'logits':
            raise ConfigError(
                "FLYP trains no head that model.head.distill='logits' could train: use 'feature', or teacher=None"
            )
        self.source = model_name, pretrained
        self.text, self.tokenizer = load_text_tower(model_name, pretrained)
        self.text.requires_grad_(True)
        classifier.head.requires_grad_(False)
        self.head_made_of: Tensor | None = None
        self.tokens: Tensor | None = None

    def forward(self, step: Step) -> dict[str, Tensor]:
        if (
            self.tokens is None
        ):  # all prompts, on the device: reading labels there would let the host wait in every step
            prompts = [template.format(name) for name in self.classnames for template in self.templates]
            self.tokens = self.tokenizer(prompts).int().unflatten(0, (len(self.classnames), -1)).to(step.labels.device)
        chosen = torch.randint(len(self.templates), (len(step.labels),)).to(step.labels.device, non_blocking=True)
        texts = self.text.encode_text(self.tokens[step.labels, chosen])
        contrast = ClipLoss(gather_with_grad=True, rank=get_rank(), world_size=get_world_size())
        with torch.autocast(step.features.device.type, enabled=False):
            image, text = (F.normalize(features.float(), dim=-1) for features in (step.features, texts))
            return dict(loss_flyp=self.weight * contrast(image, text, self.text.logit_scale.exp()))

    def finish(self, classifier: nn.Module) -> None:
        """Make the head of the text tower, unless it is of this tower already."""
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
        """The state of the ``head`` that is made of the text tower on the line of WiSE-FT, (1 − α) start + α ``end``:
        the towers of images and texts are mixed alike, as in the paper."""
        text, _ = load_text_tower(*self.source)
        device = next(head.parameters()).device
        text.load_state_dict(interpolate(text.state_dict(), end, alpha))
        mixed = deepcopy(head)
        self._make_head(mixed, text.to(device))
        return mixed.state_dict()
