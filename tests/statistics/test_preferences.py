"""Win rates and kappas against closed forms, and planted preferences that the interval must find."""

from __future__ import annotations

import numpy as np
import pytest

from customized_grpo.statistics.preferences import cohen_kappa, fleiss_kappa, win_rate


def test_a_tie_counts_half() -> None:
    rate = win_rate([1, 1, 0.5, 0], ["a", "a", "b", "b"])
    assert (rate.wins, rate.ties, rate.losses, rate.rate, rate.subjects) == (2, 1, 1, 0.625, 2)


def test_a_planted_preference_is_covered_by_its_interval_of_subjects() -> None:
    """Each subject has its own probability of a win, so votes on one subject are not independent."""
    chance = np.random.default_rng(0)
    covered = 0
    trials = 200
    for _ in range(trials):
        probabilities = chance.beta(3, 2, size=24)  # mean .6
        votes = (chance.random((24, 8)) < probabilities[:, None]).astype(float)
        subjects = np.repeat([f"toy-{number}" for number in range(24)], 8)
        rate = win_rate(votes.ravel(), list(subjects))
        assert rate.low is not None and rate.high is not None
        covered += rate.low <= 0.6 <= rate.high
    assert 0.89 <= covered / trials <= 0.99


def test_votes_on_one_subject_do_not_make_an_interval_narrower() -> None:
    few = win_rate([1, 0, 1, 0.5], ["a", "b", "c", "d"])
    many = win_rate(np.repeat([1, 0, 1, 0.5], 50), [name for name in "abcd" for _ in range(50)])
    assert (few.low, few.high) == (many.low, many.high)


def test_without_a_dissenting_vote_the_interval_is_the_exact_one() -> None:
    subjects = [f"toy-{number % 8}" for number in range(40)]
    for value, ends in ((1, (0.025 ** (1 / 8), 1.0)), (0, (0.0, 1 - 0.025 ** (1 / 8)))):
        rate = win_rate([value] * 40, subjects)
        assert (rate.low, rate.high) == pytest.approx(ends)


def test_an_interval_has_a_width_although_all_subjects_say_the_same() -> None:
    subjects = [f"toy-{number % 8}" for number in range(16)]
    same = 0.025 ** (1 / 8)
    # ties alone, and two voters who always disagree
    for votes in ([0.5] * 16, [1.0] * 8 + [0.0] * 8):
        rate = win_rate(votes, subjects)
        assert (rate.low, rate.high) == pytest.approx((same / 2, 1 - same / 2))
    (few, many) = (win_rate([0.5] * n, [str(k) for k in range(n)]) for n in (2, 200))
    assert few.low is not None and few.low < 0.1 and many.low is not None and many.low > 0.49


def test_one_subject_has_no_interval() -> None:
    rate = win_rate([1, 0], ["a", "a"])
    assert rate.low is None and rate.high is None


@pytest.mark.parametrize(("values", "subjects"), [([], []), ([1], ["a", "b"]), ([0.7], ["a"])])
def test_what_is_no_vote_is_refused(values: list[float], subjects: list[str]) -> None:
    with pytest.raises(ValueError):
        win_rate(values, subjects)


def choices(table: list[list[int]]) -> tuple[list[str], list[str]]:
    """Return the answers of two voters whose joint counts are a table."""
    first, second = [], []
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            first += [str(row)] * count
            second += [str(column)] * count
    return first, second


def test_cohens_kappa_is_that_of_the_table() -> None:
    # p_o = (20 + 18) / 50, p_e = (30 * 22 + 20 * 28) / 50**2
    assert cohen_kappa(*choices([[20, 10], [2, 18]])) == pytest.approx((0.76 - 0.488) / (1 - 0.488))
    assert cohen_kappa(*choices([[9, 0, 0], [0, 9, 0], [0, 0, 9]])) == pytest.approx(1)
    assert cohen_kappa(*choices([[4, 4], [4, 4]])) == pytest.approx(0)
    assert cohen_kappa(*choices([[0, 5], [5, 0]])) == pytest.approx(-1)


def test_kappa_is_not_defined_where_nothing_could_disagree() -> None:
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert fleiss_kappa(np.zeros((0, 3))) is None


def test_fleiss_kappa_is_that_of_his_paper() -> None:
    """The ten subjects and fourteen raters of the worked example of Fleiss' formula."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(counts) == pytest.approx(0.2099, abs=5e-5)
    assert fleiss_kappa([[3, 0], [0, 3]]) == pytest.approx(1)


def test_fleiss_kappa_of_two_voters_is_scotts_pi() -> None:
    first, second = choices([[20, 5], [10, 15]])
    counts = [[pair.count("0"), pair.count("1")] for pair in zip(first, second, strict=True)]
    shares = (55 / 100, 45 / 100)
    expected = shares[0] ** 2 + shares[1] ** 2
    assert fleiss_kappa(counts) == pytest.approx((0.7 - expected) / (1 - expected))


@pytest.mark.parametrize("counts", [[[2, 0], [1, 0]], [[1, 0], [0, 1]]])
def test_fleiss_kappa_needs_equally_many_votes(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        fleiss_kappa(counts)


def test_two_and_one_voters_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError):
        cohen_kappa(["a"], [])
