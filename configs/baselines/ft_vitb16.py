# Plain fine-tuning.
_base_ = '../_base_/imagenet.py'
