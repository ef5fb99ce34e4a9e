"""Test data of which a model with random weights finds about the half."""

import json

import cv2

from mmcare import Predictor
from mmcare.runtime import draw_probe

KEPT = ((96, 128), (128, 96), (96, 96), (96, 128))
"""Heights and widths of pictures that the pipeline does not resize: masks and label maps of random weights are noise,
which cannot be resized in two ways alike."""
RESIZED = ((90, 120), (100, 70), (80, 110), (64, 64))
GROUND = """
_base_ = ["{config}"]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (128, 96)
test_dataloader = dict(
    _delete_=True,
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(pipeline=test_pipeline, data_root="{folder}", metainfo=dict(classes={classes}), {data}),
)
test_evaluator = {evaluator}
"""
KINDS = {
    "detection": (
        "type='CocoDataset', ann_file='ground.json', data_prefix=dict(img='pictures/'), test_mode=True",
        "dict(ann_file='{folder}/ground.json')",
    ),
    "segmentation": (
        "type='BaseSegDataset', data_prefix=dict(img_path='pictures', seg_map_path='maps'), img_suffix='.png'",
        "dict(type='IoUMetric', iou_metrics=['mIoU'])",
    ),
}


def write_ground(model, folder, sizes):
    """Write test data, pictures of these sizes, of which a model finds about the half; return the config for it.

    Every second detection, or a part of the label map, is the truth.
    """
    (folder / "pictures").mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        (picture,) = draw_probe(number, (1, 3, height, width))
        cv2.imwrite(str(folder / f"pictures/{number}.png"), picture.transpose(1, 2, 0)[..., ::-1])
    data, evaluator = KINDS[model.task]
    config = folder / f"ground_{model.config.stem}.py"
    text = dict(config=model.config, folder=folder, classes=tuple("01234"), data=data)
    config.write_text(GROUND.format(**text, evaluator=evaluator.format(folder=folder)))
    if model.task == "segmentation":  # labels are not reduced, as in ADE20K's pipeline
        with config.open("a") as file:
            file.write("test_pipeline[3].reduce_zero_label = False\n")
    predicted = list(Predictor(config, model.checkpoint, device="cpu", fast=False)(folder / "pictures"))
    if model.task == "segmentation":
        (folder / "maps").mkdir()
        for number, result in enumerate(predicted):
            labels = result.label_map.copy()
            labels[: labels.shape[0] // 3] = 0
            cv2.imwrite(str(folder / f"maps/{number}.png"), labels)
        return config
    truth = dict(info={}, categories=[dict(id=number + 1, name=str(number)) for number in range(5)])
    truth["images"] = [
        dict(id=number, file_name=f"{number}.png", height=height, width=width)
        for number, (height, width) in enumerate(sizes)
    ]
    found = [result for number, one in enumerate(predicted) for result in one.to_coco(number)[:30:2]]
    truth["annotations"] = [
        dict(
            {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation") if key in one},
            id=number + 1,
            iscrowd=0,
            area=one["bbox"][2] * one["bbox"][3],
        )
        for number, one in enumerate(found)
    ]
    (folder / "ground.json").write_text(json.dumps(truth))
    return config
