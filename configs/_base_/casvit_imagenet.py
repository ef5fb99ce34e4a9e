# CAS-ViT on ImageNet, as its authors train it on 8 GPUs: the command in their README, and for what it does not say the
# defaults of their classification/main.py. They use no Mixup, CutMix or random erasing. They train in mixed precision,
# which is --amp here, and without a teacher in the code that they publish.
_base_ = [
    "models/classifier.py",
    "datasets/imagenet_224.py",
    "schedules/classification_300e.py",
    "runtime/classification.py",
]
model = dict(backbone=dict(type="mmcare.CASViT"), head=dict(type="mmcare.CASViTHead"))  # drop path 0.1: README
optim_wrapper = dict(
    optimizer=dict(lr=6e-3),  # README
    accumulative_counts=2,  # --update_freq: 2,048 images for a step
)
param_scheduler = [  # --warmup_epochs, --warmup_start_lr and --min_lr; MMEngine's warm-up cannot start at 0
    dict(type="LinearLR", start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=280,
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    # README: --model_ema and --model_ema_eval; --model_ema_decay is 0.9995, once for each step of two batches
    dict(type="EMAHook", momentum=5e-4, interval=2, update_buffers=True, priority="ABOVE_NORMAL")
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)  # 8 × 128, twice for each step
