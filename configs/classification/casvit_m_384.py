_base_ = "../_base_/casvit_imagenet_384.py"
model = dict(backbone=dict(arch="m"), head=dict(in_channels=384))
load_from = "checkpoints/cas-vit-m.pth"
