"""docs/complexity.py: its token mixers are what they are called, and cost what their formulas say."""

import pytest
import torch
from helpers import ROOT, load_module, relative_error

docs = load_module(ROOT / "docs/complexity.py")
CHANNELS, SIDE = 96, 5
TOKENS = SIDE**2


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        # q and k of 32 channels, two products with heads of 16 and one with the mean key; 3×3, 7×7
        ("CARE", 32 * 64 + 2 * 32 * 16 + 32 + 32 * 9 + 32 * 49),
        ("CARE, stacked", 96 * 192 + 2 * 96 * 16 + 96 + 96 * 9 + 96 * 49),
        # q, k, v; twice 3×3 and 96 → 1, and per map 96 → 96; Γ; the last 3×3
        ("CAS-ViT", 96 * 288 + 2 * (96 * 9 + 96) + 2 * 96 * 9 + 2 * 96 * 96 / TOKENS),
        # q, k, v; two products with all tokens; the projection
        ("softmax attention", 96 * 288 + 2 * TOKENS * 96 + 96 * 96),
        # scores, keys, values; the weighted sum; the projection
        ("MobileViTv2", 96 * 193 + 96 + 96 * 96),
    ],
)
def test_a_mixer_keeps_the_shape_and_costs_what_its_formula_says(name, per_token):
    mixer = docs.MIXERS[name](CHANNELS).eval()
    x = torch.randn(2, CHANNELS, SIDE, SIDE)
    assert mixer(x).shape == x.shape
    assert docs.count(mixer, CHANNELS, SIDE) == pytest.approx(per_token * TOKENS, rel=1e-12)
    assert set(docs.MIXERS) == {"CARE", "CARE, stacked", "CAS-ViT", "softmax attention", "MobileViTv2"}


def test_softmax_attention_is_its_formula():
    attention = docs.SoftmaxAttention(32).double()
    x = torch.randn(1, 32, 3, 4, dtype=torch.float64)
    query, key, value = attention.query_key_value(x[0].flatten(1).t()).chunk(3, dim=1)
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * (head + 1))
        weights = (query[:, part] @ key[:, part].t() / 16**0.5).softmax(dim=1)
        heads.append(weights @ value[:, part])
    wanted = attention.project(torch.cat(heads, dim=1)).t().reshape(1, 32, 3, 4)
    assert relative_error(attention(x), wanted) < 1e-10


def test_separable_attention_is_its_formula():
    attention = docs.SeparableAttention(6).double()
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    tokens = x[0].flatten(1).t()
    weight, bias = attention.score_key_value.weight[:, :, 0, 0], attention.score_key_value.bias
    scores, keys, values = (tokens @ weight.t() + bias).split((1, 6, 6), dim=1)
    weights = scores.exp() / scores.exp().sum()
    context = sum(weights[i] * keys[i] for i in range(12))
    out = (context * values.clamp_min(0)) @ attention.project.weight[:, :, 0, 0].t() + attention.project.bias
    assert relative_error(attention(x), out.t().reshape(1, 6, 3, 4)) < 1e-10


def test_a_short_run_prints_the_tables_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docs, "PICTURE", tmp_path / "complexity.png")
    for name, value in dict(SIDES=(2, 4, 8), CHANNELS=(48, 96), ROUNDS=2, FITTED=2).items():
        monkeypatch.setattr(docs, name, value)
    docs.main()
    printed = capsys.readouterr().out
    assert (tmp_path / "complexity.png").read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines() if "|" in line]
    header = [row for row in rows if row[-1] == "exponent"]
    assert [row[:-1] for row in header] == [["4", "16", "64"]] * 2 + [["48", "96"]] * 2
    exponents = {}
    for row in rows:
        if row[0] in docs.MIXERS:
            exponents.setdefault(row[0], []).append(float(row[-1]))
    assert [exponents["CARE"][1], exponents["MobileViTv2"][1]] == [1, 1]  # MACs over tokens
    assert 1 < exponents["softmax attention"][1] < 2
    assert all(1 < own[3] < 2 for own in exponents.values())  # MACs over channels
