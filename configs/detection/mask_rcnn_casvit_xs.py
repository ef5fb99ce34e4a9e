# The settings of CAS-ViT's authors.
_base_ = [
    "../_base_/models/mask_rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/runtime/detection.py",
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
