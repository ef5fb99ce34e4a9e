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
        arch="s",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-s.pth"),
    ),
    neck=dict(in_channels=[48, 64, 128, 256]),
)
