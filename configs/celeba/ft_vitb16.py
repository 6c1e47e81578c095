# Plain fine-tuning.
_base_ = '../_base_/celeba.py'
