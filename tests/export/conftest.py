from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import CONFIGS, TINY, shake
from mmcv.cnn.bricks.scale import LayerScale
from mmengine.config import Config
from mmengine.model import initialize
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmcare import Predictor
from mmcare.export import certification, export, exporting

BACKBONES = {
    "care": (f'type="mmcare.CARE", arch=dict({TINY}, _delete_=True)', (32, 32, 64, 128)),
    "casvit": (
        'type="mmcare.CASViT", arch=dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), _delete_=True)',
        (8, 16, 24, 32),
    ),
}
HEADS = {
    "retinanet": (
        "detection",
        "neck=dict(in_channels={widths}, out_channels=32, num_outs=4),"
        "bbox_head=dict("
        "    num_classes=5, in_channels=32, feat_channels=32, stacked_convs=1,"
        "    anchor_generator=dict(strides=[8, 16, 32, 64]),"
        "),"
        "test_cfg=dict(nms_pre=80, max_per_img=150),",
    ),
    "mask_rcnn": (
        "detection",
        "neck=dict(in_channels={widths}, out_channels=32),"
        "rpn_head=dict(in_channels=32, feat_channels=32),"
        "roi_head=dict("
        "    bbox_roi_extractor=dict(out_channels=32),"
        "    bbox_head=dict(in_channels=32, fc_out_channels=32, num_classes=5),"
        "    mask_roi_extractor=dict(out_channels=32),"
        "    mask_head=dict(in_channels=32, conv_out_channels=32, num_convs=1, num_classes=5),"
        "),"
        "test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=130), rcnn=dict(max_per_img=12)),",
    ),
    "semantic_fpn": (
        "segmentation",
        "neck=dict(in_channels={widths}, out_channels=32),"
        "decode_head=dict(in_channels=[32, 32, 32, 32], channels=16, num_classes=5),",
    ),
    "upernet": (
        "segmentation",
        "decode_head=dict(in_channels={widths}, channels=16, num_classes=5),"
        "auxiliary_head=dict(in_channels={widths}[2], channels=16, num_classes=5),",
    ),
}


class Exported:
    """A model with random weights, and its files."""

    def __init__(self, config, folder):
        self.config, self.checkpoint, self.folder = config, folder / f"{config.stem}.pth", folder
        _write_weights(self.config, self.checkpoint)
        trained = Predictor(self.config, self.checkpoint, device="cpu", fast=False)
        self.model, self.task = trained.model, trained.task

    def export(self, name, config=None, **options):
        return export(str(config or self.config), self.checkpoint, self.folder / name, **options)

    def predict(self, images):
        """Return what MMDetection or MMSegmentation predicts for images (B, 3, H, W), RGB."""
        if self.task == "detection":
            from mmdet.structures import DetDataSample as Sample
        else:
            from mmseg.structures import SegDataSample as Sample
        size = tuple(images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        samples = [Sample(metainfo=meta) for _ in images]
        with torch.no_grad():
            return self.model.test_step({"inputs": list(images.flip(1)), "data_samples": samples})


def write_tiny_config(folder, family, head):
    """Write the config of a tiny model with this backbone and head; return its path."""
    task, parts = HEADS[head]
    backbone, widths = BACKBONES[family]
    if (family, head) == ("casvit", "retinanet"):  # these configs use three maps
        widths = widths[1:]
    config = folder / f"{head}.py"
    base = CONFIGS / task / f"{head}_{family}_{'s1' if family == 'care' else 'm'}.py"
    model = f"dict(backbone=dict({backbone}), {parts.format(widths=list(widths))})"
    config.write_text(f'_base_ = ["{base}"]\nmodel = {model}\n')
    return config


def _write_weights(config, checkpoint):
    """Write a checkpoint whose heads find something in noise."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    # With 0, two proposals of Mask R-CNN have nearly the IoU from which one suppresses the other.
    torch.manual_seed(int(cfg.model.type == "MaskRCNN"))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    initialize(model.backbone, model.backbone.init_cfg)
    shake(model)
    for stage in model.backbone.stages:
        for scale in (module for module in stage.modules() if isinstance(module, LayerScale)):
            scale.weight.data /= len(stage.blocks)  # or maps become very large, block by block
    spread = {"retina_cls": 0.05, "retina_reg": 0.1, "rpn_cls": 0.3, "rpn_reg": 0.1, "fc_cls": 0.3, "fc_reg": 0.3}
    for name, module in model.named_modules():
        if (deviation := spread.get(name.rpartition(".")[2])) is not None:
            # In wide layers the scores would be so near to 0 and 1 that many are equal.
            share = 32 / module.weight.shape[1]
            nn.init.normal_(module.weight, 0, deviation * (share**0.5 if name.endswith("fc_cls") else share))
    if hasattr(model, "bbox_head"):
        nn.init.normal_(model.bbox_head.retina_cls.bias, -4, 0.5)
    head = model.decode_head if hasattr(model, "decode_head") else getattr(model, "bbox_head", None)
    head = head or model.roi_head.bbox_head
    meta = {"dataset_meta": {"classes": tuple(map(str, range(head.num_classes)))}}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, checkpoint)


@pytest.fixture(scope="session", autouse=True)
def small_measurements():
    """Measure with few and small images."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(exporting, "SHAPES", dict.fromkeys(exporting.SHAPES, (96, 128)))
        monkeypatch.setattr(certification, "ROUNDS", (1, 1))
        monkeypatch.setattr(certification, "PICTURES", 1)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return a function from a family and a head to :class:`Exported`."""
    made = {}

    def exported(family, head):
        if (family, head) not in made:
            folder = tmp_path_factory.mktemp(head)
            made[family, head] = Exported(write_tiny_config(folder, family, head), folder)
        return made[family, head]

    return exported


@pytest.fixture
def exported_config(tmp_path):
    """Return a function from the path of a config to :class:`Exported`."""
    return partial(Exported, folder=tmp_path)


@pytest.fixture(scope="session")
def run():
    """Return a function that runs an ONNX file on images (B, 3, H, W), and returns its outputs by name."""

    def run(path, images):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {"input": images.numpy().astype(np.float32)})
        return SimpleNamespace(**dict(zip(names, map(torch.from_numpy, values), strict=True)), names=names)

    return run


@pytest.fixture
def pictures():
    """Return a function that makes pictures (B, 3, H, W), RGB, uint8: squares in noise."""

    def pictures(batch, height, width):
        generator = torch.Generator().manual_seed(height + width)
        noise = torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
        for number, picture in enumerate(noise):
            side = 12 + 8 * number
            picture[:, 10 : 10 + side, 20 : 20 + side] = torch.tensor([200, 40 * number, 90])[:, None, None]
        return noise

    return pictures
