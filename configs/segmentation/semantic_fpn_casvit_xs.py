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
        arch="xs",
        drop_path_rate=0.0,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-xs.pth"),
    ),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
