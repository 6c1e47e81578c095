# Plain fine-tuning.
_base_ = '../_base_/wilds.py'
