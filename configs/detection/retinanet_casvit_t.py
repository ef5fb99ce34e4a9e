# The settings of CAS-ViT's authors.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CASViT",
        arch="t",
        out_indices=(1, 2, 3),  # the norm of the stride-4 map would get no gradient
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-t.pth"),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
