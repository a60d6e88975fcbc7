"""The colours that stand in one chart keep apart, for colour-blind readers too."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from customized_grpo.pages.comparison_data import OWN_COLOURS
from customized_grpo.pages.comparison_tables import QUADRANTS
from customized_grpo.pages.page import TEMPLATES
from customized_grpo.pages.run_figures import ATTRIBUTES, IMAGE_STATISTICS, MODES, TIMES

Floats = NDArray[np.float64]

THEMES = re.findall(r":root \{([^}]*)\}", (TEMPLATES / "charts.css").read_text())
TOGETHER = {
    "arms": (*OWN_COLOURS, "plain", "base"),
    "image statistics": tuple(colour for *_, colour in IMAGE_STATISTICS),
    "modes": tuple(colour for *_, colour in MODES),
    "parts": tuple(colour for *_, colour in ATTRIBUTES),
    "time": (*(colour for *_, colour in TIMES), "other"),
    "quadrants": (*(colour for *_, colour in QUADRANTS), "base"),
    "kinds": ("prompt", "identity", "quality", "base"),
}
"""Names of the colours of one chart."""

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "full": np.eye(3),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue cones": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Ottosson 2020.
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
APART = 0.08
"""Least distance in OKLab, where 0.02 is the least that people notice."""


def oklab(colour: str, sight: Floats) -> Floats:
    """Return "#rrggbb" as it is seen, in OKLab [3]."""
    coded = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen: Floats = OKLAB @ np.cbrt(CONES @ np.clip(sight @ linear, 0, 1))
    return seen


def test_black_and_white_are_as_far_apart_as_lightness_goes() -> None:
    white, black = (oklab(colour, SIGHT["full"]) for colour in ("#ffffff", "#000000"))
    assert np.linalg.norm(white - black) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("chart", TOGETHER)
@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", range(3), ids=["light", "dark", "paper"])
def test_no_two_colours_of_a_chart_look_alike(chart: str, sight: str, theme: int) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w{6});", THEMES[theme]))
    for one, other in combinations(TOGETHER[chart], 2):
        distance = np.linalg.norm(oklab(colours[one], SIGHT[sight]) - oklab(colours[other], SIGHT[sight]))
        assert distance >= APART, (one, other)
