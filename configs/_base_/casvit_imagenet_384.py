# Fine-tuning of CAS-ViT at 384², as its authors do it on 8 GPUs: the second command in their README, and for what it
# does not say the defaults of their classification/main.py. A config adds load_from, what was trained at 224².
_base_ = "casvit_imagenet.py"
model = dict(backbone=dict(drop_path_rate=0.0))  # --drop_path
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384  # --input_size
test_pipeline = _base_.test_pipeline
# The whole picture without a crop: build_transform of classification/data/datasets.py from 384 on.
test_pipeline[1:3] = [dict(type="Resize", scale=(384, 384), backend="pillow", interpolation="bicubic")]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))  # --batch_size
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=30)  # --epoch
optim_wrapper = dict(optimizer=dict(lr=5e-5))  # --lr; --weight_decay is 0.05 as before
# --min_lr is the same as --lr, so that nothing follows the warm-up, whose length the command leaves as it is.
param_scheduler = [dict(type="LinearLR", start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True)]
auto_scale_lr = dict(enable=False, base_batch_size=512)
