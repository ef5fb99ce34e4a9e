# 300 epochs of AdamW with a cosine and the average of the weights. A config adds the learning rate.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=1)  # CAS-ViT: --epochs; CARE: ours, as usual
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    # CAS-ViT: --opt and --weight_decay of classification/main.py. CARE: ours, as usual.
    optimizer=dict(type="AdamW", weight_decay=0.05),
    # CAS-ViT: get_parameter_groups of classification/optim_factory.py. CARE: ours, as usual.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
