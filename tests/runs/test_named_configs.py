"""The configs that mmcare brings, by name: ``detection/retinanet_care_s1``."""

from pathlib import Path

import pytest
from helpers import CONFIGS, load_tool
from mmengine.config import Config

import mmcare

NAME = "detection/retinanet_care_s1"
print_config, get_flops = load_tool("print_config"), load_tool("get_flops")


def test_a_name_gives_the_config():
    config = mmcare.get_config(NAME)
    assert config.to_dict() == Config.fromfile(CONFIGS / f"{NAME}.py").to_dict()


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("retinanet_care_s1", "did you mean detection/retinanet_care_s1 or "),
        ("detection/retinanet_casvit_x", "did you mean detection/retinanet_casvit_xs or "),
        ("_base_/models/upernet", "mmcare --help lists its configs"),
        ("../setup", "mmcare --help lists its configs"),
    ],
)
def test_a_wrong_name_is_told_with_the_closest(name, rest):
    with pytest.raises(mmcare.UserError) as raised:
        mmcare.get_config(name)
    assert str(raised.value).startswith(f"mmcare has no config {name!r}: {rest}")


def test_a_command_takes_a_name_where_there_is_no_such_file(in_process, refusal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, printed = in_process(print_config.main, "config", NAME)
    assert status == 0
    assert printed.out.strip() == Config.fromfile(CONFIGS / f"{NAME}.py").pretty_text.strip()
    told = refusal(print_config.main, "config", "retinanet_care_s1")
    assert told.startswith("there is no config retinanet_care_s1: did you mean detection/retinanet_care_s1 or ")

    Path("detection").mkdir()
    Path(NAME).write_text("a = 1")
    assert "py/yml/yaml/json" in refusal(print_config.main, "config", NAME)


def test_models_are_counted_by_their_configs_name(in_process):
    by_name, by_file = (
        in_process(get_flops.main, "flops", config, "--shape", 64) for config in (NAME, CONFIGS / f"{NAME}.py")
    )
    assert by_name[0] == 0
    assert by_name[1].out.splitlines()[1:] == by_file[1].out.splitlines()[1:]
