# CARE on ImageNet. Of its authors' training settings we know the initial layer scale and 12 GPUs. The others are ours:
# those of MMPretrain for PoolFormer, on whose code the authors' is based as their README says, and EMA.
_base_ = [
    "models/classifier.py",
    "datasets/imagenet_224.py",
    "schedules/classification_300e.py",
    "runtime/classification.py",
]
model = dict(
    backbone=dict(type="mmcare.CARE", layer_scale_init_value=1e-6),  # the authors'
    head=dict(type="mmcare.CAREHead", in_channels=1024),
    # ours: one of both for each batch
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
train_pipeline = _base_.train_pipeline
train_pipeline.insert(
    -1,
    dict(  # ours
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.mean_bgr,
        fill_std=[57.375, 57.12, 58.395],
    ),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=1e-3))  # ours: 1e-3 for 1,024 images, as PoolFormer's authors scale it
param_scheduler = [  # ours
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=295,
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [dict(type="EMAHook", momentum=2e-4, update_buffers=True, priority="ABOVE_NORMAL")]  # ours
auto_scale_lr = dict(enable=False, base_batch_size=1024)
