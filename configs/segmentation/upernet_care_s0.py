# CARE's authors do not report UperNet: these are the usual settings for transformers.
_base_ = "../_base_/upernet_ade20k.py"
model = dict(
    backbone=dict(
        type="mmcare.CARE",
        arch="s0",
        drop_path_rate=0.0,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/CARETrans_S0.pth.tar"),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 1024]),
    auxiliary_head=dict(in_channels=128),
)
