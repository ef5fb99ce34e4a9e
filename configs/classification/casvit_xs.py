_base_ = "../_base_/casvit_imagenet.py"
model = dict(backbone=dict(arch="xs"), head=dict(in_channels=220))
