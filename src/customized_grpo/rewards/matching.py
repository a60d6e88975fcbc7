"""Several subjects matched one to one: each reference with the subject of the image that is most like it.

The matching is the one with the largest sum of cosines (Hungarian method), as people are matched by `face`.
A subject of the image is seen cut out and from near by, so that its size and place do not count.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from customized_grpo.rewards.options import RewardOptions

MARGIN = 0.1
"""Room around a subject, as a share of the longer side of its box."""


class MatchOptions(RewardOptions):
    """How an identity reward takes the references of a row."""

    match: bool = False
    """Whether each reference shows another subject, matched with those of the image; needs `segmenter`."""


def matched_score(subjects: Tensor, references: Tensor) -> float:
    """Return the largest mean cosine of references with different subjects.

    A reference with no subject left to be matched with counts 0, as a stranger would. More subjects than
    references cost nothing.

    Args:
        subjects: Unit features of the M subjects found in the image [M, D].
        references: Unit features of the references [R, D].

    Returns:
        In [-1, 1]; NaN if nothing was found in the image.
    """
    if not len(subjects):
        return float("nan")
    cosines_RM = (references @ subjects.T).cpu().numpy()
    pairs = linear_sum_assignment(cosines_RM, maximize=True)
    return float(cosines_RM[pairs].sum() / len(references))


def crop_to_subject(image: Tensor, mask: Tensor, neutral: Tensor) -> Tensor:
    """Return a square around a subject, with everything else in the neutral colour.

    Args:
        image: [3, H, W] in [0, 1].
        mask: Where the subject is, bool [H, W]; the whole image is the subject where that is nowhere.
        neutral: [3, 1, 1].

    Returns:
        [3, S, S].
    """
    image = image.cpu()
    mask = mask.cpu()
    # Nothing to cut out: the whole image stands for the subject.
    if not bool(mask.any()):
        mask = torch.ones_like(mask)
    rows = mask.any(dim=1).nonzero().flatten()
    columns = mask.any(dim=0).nonzero().flatten()
    # One past the last row with the subject, as slices count.
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    side += 2 * round(MARGIN * side)
    square = neutral.expand(3, side, side).clone()
    # The subject is in the middle of the square, at its own scale.
    y = (side - (bottom - top)) // 2
    x = (side - (right - left)) // 2
    inside = mask[top:bottom, left:right]
    part = torch.where(inside, image[:, top:bottom, left:right], neutral)
    square[:, y : y + bottom - top, x : x + right - left] = part
    return square
