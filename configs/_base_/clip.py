# OpenAI's CLIP ViT-B/16 with a cosine classifier; images are normalised as for the training of CLIP.
model = dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='ViT-B-16-quickgelu', pretrained='openai'),
    head=dict(type='CLIPDistillHead'),
    data_preprocessor=dict(
        type='CAMRefillDataPreprocessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        to_rgb=True,
    ),
)
