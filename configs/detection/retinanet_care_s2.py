# CARE's authors give no detection settings: these are CAS-ViT's.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/detection_1x.py",
    "../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CARE",
        arch="s2",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/CARETrans_S2.pth.tar"),
    ),
    neck=dict(in_channels=[32, 64, 192, 1536]),
)
