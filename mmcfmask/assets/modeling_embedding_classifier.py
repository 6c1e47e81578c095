"""An image classifier over the embedding z of an image by CLIP or SigLIP: logits = W z/‖z‖ + b."""

import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModelWithProjection, SiglipVisionModel
from transformers.modeling_outputs import ImageClassifierOutput


class CLIPEmbeddingClassifier(CLIPVisionModelWithProjection):
    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        output = super().forward(pixel_values=pixel_values, **kwargs)
        return _classify(self.classifier, output.image_embeds, labels)


class SiglipEmbeddingClassifier(SiglipVisionModel):
    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        output = super().forward(pixel_values=pixel_values, **kwargs)
        return _classify(self.classifier, output.pooler_output, labels)


def _classify(classifier, embeddings, labels):
    logits = classifier(F.normalize(embeddings, dim=-1))
    loss = None if labels is None else F.cross_entropy(logits, labels)
    return ImageClassifierOutput(loss=loss, logits=logits)
