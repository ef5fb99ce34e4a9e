"""docs/ablations.py and docs/pretraining.py: what they train, what they keep, and their tables."""

import json

import pytest
from helpers import ROOT, load_module
from mmengine.registry import MODELS

from mmcare.cli import parse_cfg_options
from mmcare.runs import get_config

docs = load_module(ROOT / "docs/ablations.py")
pretraining = load_module(ROOT / "docs/pretraining.py")
networks = pytest.mark.parametrize("network", docs.ABLATIONS)
tasks = pytest.mark.parametrize("task", docs.CONFIGS)


@tasks
@networks
def test_each_way_trains_its_ablation_and_counts_the_same_network(network, task):
    family, arch = network.split(":")
    found = docs.ways(network)
    assert list(found) == ["whole", *docs.ABLATIONS[network]]
    for name, (subject, settings) in found.items():
        cfg = get_config(docs.CONFIGS[task][network])
        cfg.merge_from_dict(parse_cfg_options(settings) or {})
        trained, counted = MODELS.build(dict(cfg.model.backbone, init_cfg=None)), docs.resolve(subject).model
        assert type(trained).__name__ == type(counted).__name__ == family + "Ablation" * (name != "whole")
        assert trained.arch_name == counted.arch_name == arch
        assert getattr(trained, "ablation", "whole") == getattr(counted, "ablation", "whole") == name


@pytest.fixture
def started(monkeypatch):
    """Replace trainings by logs: mAP grows by 0.1 with the seed, is half of it with an ablation, and 0.2 more from a
    classifier, whose accuracy is 100 times as much."""
    started = []

    def run(command, **_):
        started.append(command)
        seed = next(int(part[-1]) for part in command if part.startswith("randomness.seed="))
        score = (0.5 + 0.1 * seed) / (1 + any("Ablation" in part for part in command))
        folder = docs.Path(command[command.index("--work-dir") + 1])
        (folder / "vis_data").mkdir(parents=True)
        metrics = {"accuracy/top1": 100 * score} if "classification" in folder.name else {"coco/bbox_mAP": score}
        if "pretrained" in folder.name:
            metrics["coco/bbox_mAP"] += 0.2
        records = [dict(loss=1.0, epoch=1, iter=1, step=1), {**metrics, "step": 1}]
        (folder / "vis_data/scalars.json").write_text("\n".join(map(json.dumps, records)))
        (folder / "last_checkpoint").write_text(f"/elsewhere/{folder.name}/epoch_6.pth")

    monkeypatch.setattr(docs.train_all.__globals__["subprocess"], "run", run)
    return started


@pytest.fixture
def printed(monkeypatch, capsys):
    def printed(module, *arguments):
        """Return the cells of the rows of the tables that a script prints."""
        monkeypatch.setattr("sys.argv", [module.__name__, *arguments])
        module.main()
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]

    return printed


def test_the_tables_have_mean_spread_and_difference_and_finished_runs_are_kept(tmp_path, printed, started):
    options = ["--seeds", "2", "--networks", "CARE:s0", "--folder", str(tmp_path / "runs"), "--jobs", "2"]
    rows = printed(docs, *options, "--amp")
    assert printed(docs, *options, "--amp") == rows
    assert len(started) == 2 * 2 * 6  # none of them a second time
    configs = {"classification/care_s0", "detection/retinanet_care_s0"}
    assert {run[4] for run in started} == configs and all(run[5:7] == ["--sample", "--amp"] for run in started)
    names = [row for row in rows if row[0] == "CARE:s0"]
    assert names == [
        ["CARE:s0", "params", "GMACs at 224²", metric, "difference, seed by seed"] for metric in ("top-1", "mAP")
    ]
    wholes, stacked = ([row[1:] for row in rows if row[0] == name] for name in ("whole", "stacked"))
    assert wholes == [["5.29 M", "0.716", score, ""] for score in ("55.0 (50.0 to 60.0)", "0.550 (0.500 to 0.600)")]
    assert [row[2:] for row in stacked] == [
        ["27.5 (25.0 to 30.0)", "-27.5 (-30.0 to -25.0)"],
        ["0.275 (0.250 to 0.300)", "-0.275 (-0.300 to -0.250)"],
    ]
    with pytest.raises(SystemExit, match="was trained with other options .*--amp.*: give another --folder"):
        printed(docs, *options)


def test_detectors_start_from_the_classifiers_of_the_same_seed(tmp_path, printed, started):
    options = ["--seeds", "2", "--networks", "CASViT:xs", "--folder", str(tmp_path)]
    rows = printed(pretraining, *options)
    assert len(started) == 2 * 3
    for seed, run in enumerate(started[-2:]):
        classifier = tmp_path / f"classification-CASViT-xs-whole-{seed}/epoch_6.pth"
        assert f"model.backbone.init_cfg.checkpoint={classifier}" in run and f"randomness.seed={seed}" in run
    assert rows[-1] == [
        "CASViT:xs",
        "55.0 (50.0 to 60.0)",
        "0.550 (0.500 to 0.600)",
        "0.750 (0.700 to 0.800)",
        "+0.200 (+0.200 to +0.200)",
    ]
    printed(docs, "--seeds", "2", "--networks", "CASViT:xs", "--folder", str(tmp_path))
    assert len(started) == 2 * 3 + 2 * 2 * 4  # the same trainings of the whole network are kept
