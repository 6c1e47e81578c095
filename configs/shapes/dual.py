# Dual heads (DRM, Li et al. 2024): class names and class descriptions answer together. The description head learns what
# the pretrained model says by it. The small CLIP knows no words that describe an outline: prompts of drawings, which
# show it without colours and texture, stand for descriptions.
_base_ = '../_base_/shapes.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='DualRisk', weight=1.0)],
    head=dict(
        type='DualHead',
        beta=0.5,
        descriptions=dict(
            type='text',
            classnames={{_base_.model.head.class_weights.classnames}},
            templates=['a line drawing of a {}.', 'a sketch of a {}.', 'a flat icon of a {}.'],
        ),
    ),
)
