# StarFT (Kim et al. 2025) on FLYP: the similarities to texts with a spurious context are held to the zero-shot ones.
# Needs the text tower.
_base_ = '../_base_/imagenet.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='StarFT', spurious_weight=0.5)],
    head=dict(cls_weight=0.0),
)
