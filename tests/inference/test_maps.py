"""Pictures of maps: what is drawn, and that it lies where it belongs on the image."""

import numpy as np
import pytest
import torch

from mmcare.inference import ContextMaps, View, draw_attention, draw_context, draw_maps

# An image of 100×60 pixels, padded to 128×64
VIEW = View(torch.zeros(3, 64, 128), np.zeros((60, 100, 3), np.uint8), (70.0, 40.0))


def panels(figure):
    """Return the panels with an image, and the label of each."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def drawn(axes):
    """Return the map on top of the image in a panel, and the place of each of its cells."""
    *_, shown = axes.images
    values = np.asarray(shown.get_array())
    left, right, bottom, top = shown.get_extent()
    return values, ((right - left) / values.shape[1], (bottom - top) / values.shape[0], left, top)


def test_the_maps_of_a_pyramid_lie_on_the_image_without_the_padding():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(8, 64 // stride, 128 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    figure = draw_maps(VIEW, maps, (0, 1, 2, 3), "title")
    assert figure.get_suptitle() == "title"
    rows = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().partition("\n")[0] for axes in rows[::3]] == [
        "C2 (stage 1, stride 4)",
        "C3 (stage 2, stride 8)",
        "C4 (stage 3, stride 16)",
        "C5 (stage 4, stride 32)",
    ]
    for feature, stride, norms, components, likeness in zip(
        maps, (4, 8, 16, 32), rows[::3], rows[1::3], rows[2::3], strict=True
    ):
        height, width = -(-60 // stride), -(-100 // stride)
        inside = feature[:, :height, :width]
        for axes in (norms, components, likeness):
            values, cell = drawn(axes)
            assert values.shape[:2] == (height, width)
            assert cell == pytest.approx((stride, stride, -0.5, -0.5))
            assert axes.get_xlim() == (-0.5, 99.5)
            assert axes.get_ylim() == (59.5, -0.5)
        assert np.allclose(drawn(norms)[0], inside.norm(dim=0))
        similar, _ = drawn(likeness)
        row, column = 40 // stride, 70 // stride
        wanted = torch.cosine_similarity(inside, feature[:, row : row + 1, column : column + 1], dim=0)
        assert np.allclose(similar, wanted)
        assert similar[row, column] == pytest.approx(1)
        (mark,) = likeness.lines
        assert (*mark.get_xdata(), *mark.get_ydata()) == VIEW.point


def test_positions_with_similar_features_have_similar_colours():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 16, generator=generator)
    which = torch.zeros(15, 25, dtype=torch.int64)
    which[:5], which[5:9, :9] = 1, 2
    feature = torch.zeros(16, 16, 32)
    feature[:, :15, :25] = kinds[which].permute(2, 0, 1)
    feature += 0.01 * torch.randn(feature.shape, generator=generator)
    feature[:, 15:], feature[:, :, 25:] = 1e6, 1e6  # the padding has no say

    def colours(feature):
        return drawn(panels(draw_maps(VIEW, [feature], (0,), ""))["principal components 1, 2, 3\nas R, G, B"])[0]

    values = colours(feature)
    assert values.min() >= 0
    assert values.max() <= 1
    means = [values[which == kind].mean(0) for kind in range(3)]
    for kind, mean in enumerate(means):
        assert np.abs(values[which == kind][:, :2] - mean[:2]).max() < 0.1
        assert all(np.abs(mean[:2] - other[:2]).max() > 0.5 for other in means[:kind])
    # They do not depend on the directions that the network has chosen for its channels.
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    assert np.abs(colours(torch.einsum("dc,chw->dhw", rotation, feature)) - values).max() < 0.02


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_maps_of_few_channels_or_of_one_value_are_drawn(channels):
    figure = draw_maps(VIEW, [torch.ones(channels, 2, 4)], (3,), "")
    values, _ = drawn(panels(figure)["principal components 1, 2, 3\nas R, G, B"])
    assert values.shape == (2, 4, 3)


def test_attention_is_drawn_relative_to_uniform_by_block_and_head():
    attention = [torch.full((2, 4, 8), 1 / 32), torch.full((2, 4, 8), 1 / 64)]
    attention[0][0] *= 3
    shown = panels(draw_attention(VIEW, attention, ""))
    assert {label: drawn(axes)[0].mean() for label, axes in shown.items()} == pytest.approx(
        {
            "block 1, mean of 2 heads": 2,
            "block 1, head 1": 3,
            "block 1, head 2": 1,
            "block 2, mean of 2 heads": 0.5,
            "block 2, head 1": 0.5,
            "block 2, head 2": 0.5,
        }
    )
    assert all(len(axes.lines) == 1 for axes in shown.values())


def test_a_single_head_has_no_mean():
    assert list(panels(draw_attention(VIEW, [torch.ones(1, 2, 4)], ""))) == ["block 1, head 1"]


def test_the_context_of_a_block_is_drawn():
    generator = torch.Generator().manual_seed(0)
    gates = [torch.rand(size, generator=generator) for size in ((4, 8), (6,), (4, 8), (6,))]
    maps = ContextMaps(*gates, context=torch.randn(6, 4, 8, generator=generator))
    shown = panels(draw_context(VIEW, [maps], ""))
    for name, values in (("queries", maps.query_spatial), ("keys", maps.key_spatial)):
        assert np.allclose(drawn(shown[f"block 1\nspatial context of the {name}"])[0], values[:, :7])
    norms = maps.context.norm(dim=0)[:, :7]
    assert np.allclose(drawn(shown["norm of Γ(Φ(q) + Φ(k))\nover the channels"])[0], norms)
    curves = shown["channel context,\nsorted"].lines
    assert [curve.get_label() for curve in curves] == ["queries", "keys"]
    for curve, values in zip(curves, (maps.query_channels, maps.key_channels), strict=True):
        assert np.allclose(curve.get_ydata(), values.sort(descending=True).values)


@pytest.mark.parametrize("shape", [(3, 1000), (1000, 3)])
def test_a_narrow_image_makes_no_endless_figure(shape):
    view = View(torch.zeros(3, 32 * -(-shape[0] // 32), 32 * -(-shape[1] // 32)), np.zeros((*shape, 3)), (1.0, 1.0))
    maps = [torch.ones(4, view.image.shape[1] // 32, view.image.shape[2] // 32)]
    assert max(draw_maps(view, maps, (3,), "").get_size_inches()) < 12
