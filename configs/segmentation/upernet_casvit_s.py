# CAS-ViT's authors do not report UperNet: these are the usual settings for transformers.
_base_ = "../_base_/upernet_ade20k.py"
model = dict(
    backbone=dict(
        type="mmcare.CASViT",
        arch="s",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-s.pth"),
    ),
    decode_head=dict(in_channels=[48, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
