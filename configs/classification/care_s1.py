_base_ = "../_base_/care_imagenet.py"
model = dict(backbone=dict(arch="s1"))
