# CAS-ViT's authors do not report UperNet: these are the usual settings for transformers.
_base_ = "../_base_/upernet_ade20k.py"
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
