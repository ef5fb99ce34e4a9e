# ImageNet-1K in data/imagenet, with a folder for each class in train/ and val/: crops of 224², 128 images a GPU.
dataset_type = "ImageNet"
data_root = "data/imagenet"
mean_bgr = [103.53, 116.28, 123.675]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    # CAS-ViT: --train_interpolation of classification/main.py. Its authors vary the side of the crops from 160 to 320
    # between batches (--multi_scale_sampler), which MMPretrain does not have.
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    # CAS-ViT: --aa of classification/main.py, rand-m9-mstd0.5-inc1. CARE: ours, as usual.
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(value) for value in mean_bgr], interpolation="bicubic"),
    ),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # CAS-ViT: build_transform of classification/data/datasets.py. CARE: ours, as usual.
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
