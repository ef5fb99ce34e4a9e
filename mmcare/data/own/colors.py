"""Colours for the classes of a data set that has none."""

from __future__ import annotations

import colorsys


def distinct_colors(number: int) -> list[tuple[int, int, int]]:
    """Return different colours as (red, green, blue), 0 to 255; for a larger number, the first ones are the same."""
    golden = 0.618033988749895
    tones = [(1.0, 0.9), (0.6, 0.95), (1.0, 0.6), (0.5, 0.7)]
    colors = []
    for index in range(number):
        saturation, value = tones[index // 16 % len(tones)]
        red, green, blue = colorsys.hsv_to_rgb((index * golden) % 1, saturation, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colors
