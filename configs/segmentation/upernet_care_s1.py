# CARE's authors do not report UperNet: these are the settings that are usual for it on transformers.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/segmentation_160k.py",
    "../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CARE",
        arch="s1",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/CARETrans_S1.pth.tar"),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 1024]),
    auxiliary_head=dict(in_channels=128),
)
train_dataloader = dict(batch_size=2)  # 16 images on 8 GPUs
default_hooks = dict(checkpoint=dict(interval=16_000))  # with each validation
