# Lipsum-FT (Nam et al. 2024): similarities to random texts are held to their start. Needs the text tower.
_base_ = './cfmask.py'
model = dict(head=dict(distill=None), auxiliary=[dict(type='LipsumFT', weight=1.0, num_texts=80, length=8)])
