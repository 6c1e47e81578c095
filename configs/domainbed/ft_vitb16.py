# Plain fine-tuning.
_base_ = '../_base_/domainbed.py'
