"""docs/ablations.py: what it trains, what it keeps, and its table."""

import json

import pytest
from helpers import ROOT, load_module
from mmengine.registry import MODELS

from mmcare.cli import parse_cfg_options
from mmcare.runs import get_config

docs = load_module(ROOT / "docs/ablations.py")
networks = pytest.mark.parametrize("network", docs.CONFIGS)


@networks
def test_each_way_trains_its_ablation_and_counts_the_same_network(network):
    family, arch = network.split(":")
    found = docs.ways(network)
    assert list(found) == ["whole", *docs.ABLATIONS[network]]
    for name, (subject, settings) in found.items():
        cfg = get_config(docs.CONFIGS[network])
        cfg.merge_from_dict(parse_cfg_options(settings) or {})
        trained, counted = MODELS.build(dict(cfg.model.backbone, init_cfg=None)), docs.resolve(subject).model
        assert type(trained).__name__ == type(counted).__name__ == family + "Ablation" * (name != "whole")
        assert trained.arch_name == counted.arch_name == arch
        assert getattr(trained, "ablation", "whole") == getattr(counted, "ablation", "whole") == name


@pytest.fixture
def started(monkeypatch):
    """Replace trainings by logs: mAP grows by 0.1 with the seed, and is half of it with an ablation."""
    started = []

    def run(command, **_):
        started.append(command)
        seed = next(int(part[-1]) for part in command if part.startswith("randomness.seed="))
        score = (0.5 + 0.1 * seed) / (1 + any("Ablation" in part for part in command))
        log = docs.Path(command[command.index("--work-dir") + 1]) / "vis_data/scalars.json"
        log.parent.mkdir(parents=True)
        records = [dict(loss=1.0, epoch=1, iter=1, step=1), {docs.SCORE: score, "step": 1}]
        log.write_text("\n".join(map(json.dumps, records)))

    monkeypatch.setattr(docs.subprocess, "run", run)
    return started


def test_the_table_has_mean_spread_and_difference_and_finished_runs_are_kept(tmp_path, monkeypatch, capsys, started):
    command = ["ablations", "--seeds", "2", "--networks", "CARE:s0", "--folder", str(tmp_path / "runs"), "--amp"]
    printed = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", command)
        docs.main()
        printed.append(capsys.readouterr().out)
    assert len(started) == 2 * 6  # none of them a second time
    assert printed[0] == printed[1]
    assert all(run[4:7] == ["detection/retinanet_care_s0", "--sample", "--amp"] for run in started)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[0].splitlines() if "|" in line]
    assert rows[0] == ["CARE:s0", "params", "GMACs at 224²", "mAP", "difference, seed by seed"]
    whole, stacked = (next(row for row in rows if row[0] == name) for name in ("whole", "stacked"))
    assert whole == ["whole", "5.29 M", "0.716", "0.550 (0.500 to 0.600)", ""]
    assert stacked[3:] == ["0.275 (0.250 to 0.300)", "-0.275 (-0.300 to -0.250)"]

    monkeypatch.setattr("sys.argv", command[:-1])
    with pytest.raises(SystemExit, match="was trained with other options .*--amp.*: give another --folder"):
        docs.main()
