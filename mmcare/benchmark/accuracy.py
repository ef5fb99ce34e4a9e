"""Published accuracy, for plots over measured time. We measured none of it."""

TOP1 = {
    "mmcare.CARE:s0": 78.4,
    "mmcare.CARE:s1": 80.1,
    "mmcare.CARE:s2": 82.1,
    "mmcare.CASViT:xs": 78.3,
    "mmcare.CASViT:s": 80.9,
    "mmcare.CASViT:m": 82.8,
    "mmcare.CASViT:t": 83.9,
}
"""ImageNet-1K top-1 at 224², reported by CARE's and CAS-ViT's authors (https://arxiv.org/abs/2411.16170 and
https://arxiv.org/abs/2408.03703). The peers are missing, as mmdet reports no top-1 for them."""

BOX_AP = {
    "casvit_xs": 36.5,
    "casvit_s": 38.6,
    "casvit_m": 40.9,
    "casvit_t": 41.9,
    "resnet50": 36.5,
    "pvtv2-b1": 41.2,
}
"""COCO box AP of RetinaNet, trained for 12 epochs, by backbone. CAS-ViT's values are from its authors, the peers' from
mmdet's metafiles (retinanet_r50_fpn_1x_coco, retinanet_pvtv2-b1_fpn_1x_coco), which have none for Swin-T and
MobileNetV2. CARE's authors report none for RetinaNet."""
