# The settings of CAS-ViT's authors.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/segmentation_40k.py",
    "../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CASViT",
        arch="m",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-m.pth"),
    ),
    neck=dict(in_channels=[64, 96, 192, 384]),
)
