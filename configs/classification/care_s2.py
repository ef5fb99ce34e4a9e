_base_ = "../_base_/care_imagenet.py"
model = dict(backbone=dict(arch="s2"), head=dict(in_channels=1536))
