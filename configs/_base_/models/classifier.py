# A classifier for ImageNet's 1,000 classes. A config adds the backbone's arch, and the head's type and in_channels.
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        out_indices=(3,),
        drop_path_rate=0.1,
        norm_eval=False,  # trained from scratch
    ),
    head=dict(
        num_classes=1000,
        # CAS-ViT: --smoothing of classification/main.py. CARE: ours, as usual.
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
