_base_ = "../_base_/casvit_imagenet_384.py"
model = dict(backbone=dict(arch="s"), head=dict(in_channels=256))
load_from = "checkpoints/cas-vit-s.pth"
