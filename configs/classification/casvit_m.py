_base_ = "../_base_/casvit_imagenet.py"
model = dict(backbone=dict(arch="m"), head=dict(in_channels=384))
