# CAS-ViT's authors do not report UperNet: these are the usual settings for transformers.
_base_ = "../_base_/upernet_ade20k.py"
model = dict(
    backbone=dict(
        type="mmcare.CASViT",
        arch="m",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/cas-vit-m.pth"),
    ),
    decode_head=dict(in_channels=[64, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
