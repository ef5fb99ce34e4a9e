"""model-index.yml, the metafiles, the table in README.md and the code agree."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmcare.benchmark import build, count

ROOT = Path(__file__).parent.parent.parent
METAFILES = ("configs/metafile_care.yml", "configs/metafile_casvit.yml")
PAPERS = {"CARE": "https://arxiv.org/abs/2411.16170", "CAS-ViT": "https://arxiv.org/abs/2408.03703"}
TYPES = {"CARE": "mmcare.CARE", "CAS-ViT": "mmcare.CASViT"}
UNITS = {
    "COCO": ("Epochs", "max_epochs"),
    "ADE20K": ("Iterations", "max_iters"),
    "ImageNet-1K": ("Epochs", "max_epochs"),
}
# All results that the authors report: top-1, box AP, mask AP or mIoU.
REPORTED = {
    "care_s0": {"Top 1 Accuracy": 78.4},
    "care_s1": {"Top 1 Accuracy": 80.1},
    "care_s2": {"Top 1 Accuracy": 82.1},
    "casvit_xs": {"Top 1 Accuracy": 78.3},
    "casvit_s": {"Top 1 Accuracy": 80.9},
    "casvit_m": {"Top 1 Accuracy": 82.8},
    "casvit_t": {"Top 1 Accuracy": 83.9},
    "casvit_xs_384": {"Top 1 Accuracy": 78.7},
    "casvit_s_384": {"Top 1 Accuracy": 81.1},
    "casvit_m_384": {"Top 1 Accuracy": 83.0},
    "casvit_t_384": {"Top 1 Accuracy": 84.1},
    "semantic_fpn_care_s2": {"mIoU": 43.5},
    "retinanet_casvit_xs": {"box AP": 36.5},
    "retinanet_casvit_s": {"box AP": 38.6},
    "retinanet_casvit_m": {"box AP": 40.9},
    "retinanet_casvit_t": {"box AP": 41.9},
    "mask_rcnn_casvit_xs": {"box AP": 37.4, "mask AP": 34.9},
    "mask_rcnn_casvit_s": {"box AP": 39.8, "mask AP": 36.7},
    "mask_rcnn_casvit_m": {"box AP": 42.3, "mask AP": 38.9},
    "mask_rcnn_casvit_t": {"box AP": 43.5, "mask AP": 39.6},
    "semantic_fpn_casvit_xs": {"mIoU": 37.1},
    "semantic_fpn_casvit_s": {"mIoU": 41.3},
    "semantic_fpn_casvit_m": {"mIoU": 43.6},
    "semantic_fpn_casvit_t": {"mIoU": 45.0},
}


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


FAMILIES = [read(path) for path in METAFILES]
ENTRIES = {entry["Name"]: entry for family in FAMILIES for entry in family["Models"]}
every = pytest.mark.parametrize("name", ENTRIES)


@cache
def backbone(name):
    """Return the backbone with a name like ``mmcare.CARE:s1``, its parameters, and its MACs at 512×512."""
    model, _ = build(name)
    ((_, parameters, macs),) = count(model, 512, 512)
    return model, parameters, macs


def test_the_index_lists_the_metafiles():
    assert read("model-index.yml") == {"Import": list(METAFILES)}


def test_each_config_is_listed_once():
    listed = [entry["Config"] for family in FAMILIES for entry in family["Models"]]
    configs = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/[!_]*/*.py")]
    assert sorted(listed) == sorted(configs)
    assert all(Path(entry["Config"]).stem == name for name, entry in ENTRIES.items())


def test_each_family_has_its_paper_and_its_code():
    collections = [collection for family in FAMILIES for collection in family["Collections"]]
    assert {collection["Name"]: collection["Paper"]["URL"] for collection in collections} == PAPERS
    for collection in collections:
        assert (ROOT / collection["README"]).is_file()
        code = (ROOT / collection["Code"]).read_text(encoding="utf-8")
        assert collection["Paper"]["URL"] in code
        assert re.sub(r"\s+", " ", collection["Paper"]["Title"]) in re.sub(r"\s+", " ", code)
    for family in FAMILIES:
        assert {entry["In Collection"] for entry in family["Models"]} == {family["Collections"][0]["Name"]}


@every
def test_what_an_entry_says_of_the_training_is_in_its_config(name):
    entry = ENTRIES[name]
    cfg, said = Config.fromfile(ROOT / entry["Config"]), entry["Metadata"]
    datasets = {"CocoDataset": "COCO", "ADE20KDataset": "ADE20K", "ImageNet": "ImageNet-1K"}
    dataset = datasets[cfg.train_dataloader.dataset.type]
    unit, key = UNITS[dataset]
    assert said["Training Data"] == dataset
    assert said[unit] == cfg.train_cfg[key]
    assert said["Batch Size"] == cfg.auto_scale_lr.base_batch_size
    assert said["Architecture"][0] == f"{entry['In Collection']} {cfg.model.backbone.arch}"
    assert cfg.model.backbone.type == TYPES[entry["In Collection"]]


@every
def test_the_figures_of_an_entrys_backbone_are_what_the_tool_counts(name):
    entry = ENTRIES[name]
    said = entry["Metadata"]["Backbone"]
    kind = f"{TYPES[entry['In Collection']]}:{name.removesuffix('_384').rpartition('_')[2]}"
    _, parameters, macs = backbone(kind)
    assert (said["Parameters"], said["FLOPs"]) == (parameters, macs)
    assert said["Input Size"] == [512, 512]
    assert said["Measured with"] == f"tools/get_flops.py {kind} --shape 512 512"


@every
def test_the_figures_of_an_entry_are_what_the_tool_counts(name):
    said = ENTRIES[name]["Metadata"]
    model, shape = build(str(ROOT / ENTRIES[name]["Config"]))
    if name.endswith("_384"):
        shape = (384, 384)  # the tool's usual size is the one that the others have
    assert list(shape) == said["Input Size"]
    _, parameters, macs = count(model, *shape)[-1]
    assert (said["Parameters"], said["FLOPs"]) == (parameters, macs)


@every
def test_the_command_of_an_entry_is_the_one_for_its_config(name):
    entry = ENTRIES[name]
    height, width = entry["Metadata"]["Input Size"]
    command = ["tools/get_flops.py", entry["Config"], "--shape", str(height), str(width)]
    assert shlex.split(entry["Metadata"]["Measured with"]) == command


@every
def test_results_are_the_authors_and_say_so(name):
    entry = ENTRIES[name]
    results = entry.get("Results", [])
    tasks = {
        "Top 1 Accuracy": "Image Classification",
        "box AP": "Object Detection",
        "mask AP": "Instance Segmentation",
        "mIoU": "Semantic Segmentation",
    }
    assert {metric: value for result in results for metric, value in result["Metrics"].items()} == REPORTED.get(
        name, {}
    )
    for result in results:
        assert [tasks[metric] for metric in result["Metrics"]] == [result["Task"]]
        assert result["Dataset"] == entry["Metadata"]["Training Data"]
        assert result["Reported by"] == f"the authors, {PAPERS[entry['In Collection']]}"


# -- README ------------------------------------------------------------------------------------------------------------


def readme_table():
    """Return {("CARE", "s1"): [channels, params, GMACs, top-1]} from README's table of backbones."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (CARE|CAS-ViT) (\w+) \|(.+)\|$", text, re.MULTILINE)
    return {(family, arch): [cell.strip() for cell in rest.split("|")] for family, arch, rest in rows}


def test_readme_has_the_seven_backbones():
    assert list(readme_table()) == [
        *(("CARE", arch) for arch in ("s0", "s1", "s2")),
        *(("CAS-ViT", arch) for arch in ("xs", "s", "m", "t")),
    ]


@pytest.mark.parametrize(("family", "arch"), readme_table())
def test_readmes_figures_are_what_the_tool_counts(family, arch):
    channels, parameters, macs, _ = readme_table()[family, arch]
    model, measured_parameters, measured_macs = backbone(f"{TYPES[family]}:{arch}")
    assert channels == ", ".join(map(str, model.out_channels))
    assert parameters == f"{measured_parameters / 1e6:.2f} M"
    assert float(macs) == pytest.approx(measured_macs / 1e9, abs=0.0055)
