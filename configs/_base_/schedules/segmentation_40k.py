# 40,000 iterations on 8 GPUs × 4 images, as CAS-ViT's authors train Semantic FPN.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40_000, val_interval=4_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=40_000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
