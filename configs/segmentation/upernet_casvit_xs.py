# CAS-ViT's authors do not report UperNet: these are the settings that are usual for it on transformers.
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/segmentation_160k.py",
    "../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(
        type="mmcare.CASViT",
        arch="xs",
        drop_path_rate=0.0,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-xs.pth"),
    ),
    decode_head=dict(in_channels=[48, 56, 112, 220]),
    auxiliary_head=dict(in_channels=112),
)
train_dataloader = dict(batch_size=2)  # 16 images on 8 GPUs
default_hooks = dict(checkpoint=dict(interval=16_000))  # with each validation
