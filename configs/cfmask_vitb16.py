# The headline variant of the publication: object mask, single fill, CLIP ViT-B/16. 8 GPUs x 64 images.
_base_ = ['_base_/recipe.py', '_base_/imagenet.py']

model = dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='ViT-B-16-quickgelu', pretrained='openai'),
    head=dict(
        type='CLIPDistillHead',
        num_classes=1000,
        class_weights=dict(type='text', classnames='imagenet', templates='openai'),
        distill='feature',
        distill_weight=30.0,
    ),
    teacher=dict(type='OpenCLIPTeacher'),  # the student's own start
    data_preprocessor=dict(
        type='CAMRefillDataPreprocessor',
        mask='object',
        fill='single',  # and the published threshold of the pair: 0.3
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        to_rgb=True,
    ),
)
