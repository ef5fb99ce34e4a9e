_base_ = "../_base_/casvit_imagenet_384.py"
model = dict(backbone=dict(arch="xs"), head=dict(in_channels=220))
load_from = "checkpoints/cas-vit-xs.pth"
