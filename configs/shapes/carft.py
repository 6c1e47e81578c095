# CAR-FT (Mao et al. 2024): the distribution of an image over the contexts of prompts is held to the zero-shot one.
# Needs the text tower.
_base_ = '../_base_/shapes.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CARFT', weight=1.0)],
)
