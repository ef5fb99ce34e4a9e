# 160,000 iterations of 16 images, as usual for UperNet on transformers; neither paper's authors report it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160_000, val_interval=16_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"layer_scale": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1_500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1_500, end=160_000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
