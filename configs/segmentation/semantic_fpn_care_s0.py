# CARE's authors give no segmentation settings: these are CAS-ViT's.
_base_ = [
    "../_base_/models/semantic_fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/segmentation_40k.py",
    "../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CARE",
        arch="s0",
        drop_path_rate=0.0,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/CARETrans_S0.pth.tar"),
    ),
    neck=dict(in_channels=[32, 64, 128, 1024]),
)
