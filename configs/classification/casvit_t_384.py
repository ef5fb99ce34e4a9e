_base_ = "../_base_/casvit_imagenet_384.py"
model = dict(backbone=dict(arch="t"), head=dict(in_channels=512))
load_from = "checkpoints/cas-vit-t.pth"
