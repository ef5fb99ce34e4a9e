"""The tools with classification configs: from end to end on the sample data, and what they refuse."""

import pickle
import re

import pytest
from helpers import CONFIGS, IN_PROCESS, TINY, load_tool
from mmengine.config import Config
from PIL import Image

import mmcare
from mmcare.checkpoints import read_checkpoint
from mmcare.data.sample import CLASSES

test, train_tool, browse, get_flops = (load_tool(name) for name in ("test", "train", "browse_dataset", "get_flops"))
CARE = CONFIGS / "classification/care_s0.py"
CLASSIFIER = f"""
_base_ = ["{CARE}"]
model = dict(backbone=dict(arch=dict({TINY}, _delete_=True)), head=dict(in_channels=128))
"""
SHORT = [*IN_PROCESS, "train_cfg.max_epochs=1", "default_hooks.checkpoint.interval=1", "param_scheduler=None"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    """The folder of a small classifier that was trained on the sample data, and its checkpoint."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "classifier.py").write_text(CLASSIFIER)
    work = train(folder, "classifier.py", "--sample", "--cfg-options", *SHORT)
    return folder, work / "epoch_1.pth"


@pytest.fixture
def tested(trained, in_process, own_process, monkeypatch):
    folder, checkpoint = trained
    monkeypatch.chdir(folder)

    def tested(*args):
        """Return the top-1 accuracy in percent."""
        options = ("--cfg-options", *IN_PROCESS)
        status, printed = in_process(test.main, "test", "classifier.py", checkpoint, "--sample", *args, *options)
        assert status == 0, printed.err
        return float(re.search(r"accuracy/top1: ([\d.]+)", printed.out + printed.err)[1])

    return tested


def pictures(folder):
    return sorted((folder / "data/sample").glob("*/classification/val/*/*.jpg"))


@pytest.mark.stack
def test_a_classifier_learns_the_sample_data_and_the_checkpoint_has_what_it_learned(trained, tested):
    folder, checkpoint = trained
    work = folder / "work_dirs"
    reached = tested("--out", "found.pkl")
    assert reached > 40  # by chance 25
    assert "accuracy/top1" in "".join(path.read_text() for path in work.rglob("*.json"))
    found = pickle.loads((folder / "found.pkl").read_bytes())
    kinds = list(read_checkpoint(checkpoint)["meta"]["dataset_meta"]["classes"])
    assert sorted(kinds) == sorted(CLASSES)
    right = [
        kinds[int(result["pred_label"])] == path.parent.name
        for result in found
        for path in pictures(folder)
        if path.samefile(result["img_path"])
    ]
    assert len(right) == len(found) == len(pictures(folder))
    assert 100 * sum(right) / len(right) == pytest.approx(reached, abs=1e-3)


def test_the_fast_form_is_as_good_and_predictions_are_drawn(trained, tested):
    plain = tested("--show-dir", "drawn")
    assert tested("--reparameterize") == pytest.approx(plain, abs=1)
    folder, _ = trained
    drawn = list((folder / "drawn").rglob("*.png"))
    assert len(drawn) == len(pictures(folder))
    assert Image.open(drawn[0]).size[0] > 0


def test_a_classifiers_checkpoint_starts_a_backbone_by_its_path_alone(trained):
    _, checkpoint = trained
    arch = Config.fromstring(f"arch = dict({TINY})", ".py").arch
    backbone = mmcare.CARE(arch, init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint)))
    backbone.init_weights()
    state = read_checkpoint(checkpoint)["state_dict"]
    name = "stages.3.blocks.0.second_interaction.fc1.weight"
    assert (backbone.state_dict()[name] == state[f"backbone.{name}"]).all()


def test_parameters_and_macs_are_counted_with_the_head(in_process):
    status, printed = in_process(get_flops.main, "flops", "classification/care_s2")
    assert status == 0
    assert "for one image of 224×224" in printed.out
    assert re.search(r"head +3.080 M +0.003 G\nwhole model +19.481 M +1.92\d G", printed.out)


def test_a_wrong_argument_of_the_head_is_told(refusal):
    told = refusal(get_flops.main, "flops", "classification/care_s0", "--cfg-options", "model.head.colour=red")
    assert (
        told == "the config's model.head does not fit mmcare.CAREHead, which has no argument colour: check the spelling"
    )


def test_missing_imagenet_is_told_with_where_it_is_from(in_process, own_process, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, printed = in_process(train_tool.main, "train", CARE)
    assert status == 2
    for split, purpose in (("train", "to train on"), ("val", "to validate on")):
        line = f"data/imagenet/{split}: ImageNet-1K's images {purpose}, missing; from https://www.image-net.org/"
        assert line in printed.err


def test_missing_class_folders_are_told(refusal, own_process, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        folder = tmp_path / "data/imagenet" / split / "n01440764"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "one.JPEG")
    told = refusal(train_tool.main, "train", CARE, "--cfg-options", *IN_PROCESS)
    assert told.startswith("data/imagenet/train has 1 class folders, but the data set has 1000 classes: complete the ")


@pytest.mark.parametrize("main", [browse.main], ids=["browse_dataset"])
def test_tools_for_dense_prediction_refuse_a_classifier(main, refusal, tmp_path):
    told = refusal(main, "tool", CARE, "--not-show", "--output-dir", tmp_path)
    assert told == f"{CARE} is for classification, and this is for detectors and segmentors: give one of theirs"


def test_prediction_refuses_a_classifier(trained):
    folder, checkpoint = trained
    with pytest.raises(mmcare.UserError, match="has a model of mmpretrain, not a detector of"):
        mmcare.Predictor(checkpoint)
    with pytest.raises(mmcare.UserError, match="is for classification, and this is for detectors and segmentors"):
        mmcare.Predictor(folder / "classifier.py", checkpoint)


def test_test_time_augmentation_needs_a_pipeline(refusal, trained, monkeypatch):
    folder, checkpoint = trained
    monkeypatch.chdir(folder)
    told = refusal(test.main, "test", CARE, checkpoint, "--tta", "--sample")
    assert told == f"--tta needs tta_model and tta_pipeline in classification, and {CARE} lacks them"
