# StarFT (Kim et al. 2025) on FLYP: the similarities to texts with a spurious context are held to the zero-shot ones.
# Needs the text tower.
_base_ = '../_base_/shapes.py'
textures = ('brick', 'striped', 'dotted', 'checkered', 'wavy', 'grassy', 'cloudy', 'grid', 'zigzag', 'sandy')
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[
        dict(
            type='StarFT',
            spurious_weight=0.5,
            contexts=['a photo of a {} on a ' + texture + ' background.' for texture in textures],
        )
    ],
    head=dict(cls_weight=0.0),
)
