_base_ = "../_base_/casvit_imagenet.py"
model = dict(backbone=dict(arch="s"), head=dict(in_channels=256))
