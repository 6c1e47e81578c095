"""CAR-FT: context-aware robust fine-tuning."""

from __future__ import annotations

from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..class_embeddings.text import text_embeddings
from .base import Step
from .distillation import knowledge_distillation
from .text import PromptLoss, cosines


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


@MODELS.register_module()
class CARFT(PromptLoss):
    """``loss_carft`` = weight · :func:`context_divergence`.

    A context is a template. Its embedding is the mean over the classes of its texts by the frozen text tower, computed
    once and cached.

    Args:
        weight (float): α of the paper.
        **kwargs: Arguments of :class:`PromptLoss`.
    """

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        contexts = text_embeddings(
            classifier, 'context', self.classnames, self.templates, model_name, pretrained, self.cache_dir
        )
        self.register_buffer('contexts', contexts, persistent=False)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return dict(
            loss_carft=self.weight * context_divergence(step.features, step.teacher_features, self.contexts, self.scale)
        )
