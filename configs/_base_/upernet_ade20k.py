# UperNet on ADE20K with the usual settings for transformers. A config adds the backbone and both heads' in_channels.
_base_ = [
    "models/upernet.py",
    "datasets/ade20k_512x512.py",
    "schedules/segmentation_160k.py",
    "runtime/segmentation.py",
]
train_dataloader = dict(batch_size=2)  # 16 images on 8 GPUs
default_hooks = dict(checkpoint=dict(interval=16_000))  # with each validation
