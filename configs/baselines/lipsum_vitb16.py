# Lipsum-FT (Nam et al. 2024): similarities to random texts are held to the zero-shot ones. Needs the text tower.
_base_ = '../_base_/imagenet.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='LipsumFT', weight=1.0, num_texts=80, length=8)],
)
