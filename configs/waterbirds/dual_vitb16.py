# Dual heads (DRM, Li et al. 2024): class names and class descriptions answer together. The description head learns what
# the pretrained model says by it.
_base_ = '../_base_/waterbirds.py'
# Text embeddings of descriptions of ImageNet's 1000 classes, (1000, 512); docs/data.md says how to make the file.
descriptions = dict(type='file', path='data/imagenet_text_descriptions.npy', rows='waterbirds')
shared = (*_base_.shared, 'descriptions')
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='DualRisk', weight=1.0)],
    head=dict(
        type='DualHead',
        beta=0.5,
        descriptions=descriptions,
    ),
)
