"""What argus-x makes of a judge's words, against what is known exactly of normal variables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

from argus_sim.core.beliefs import Beliefs, expected_rise, posterior, reservation, second_gains
from argus_sim.core.sequences import worthwhile

TRAIN = 20_000
#: How well the judge of these tests judges.
R = 0.6


@pytest.fixture(scope="module")
def beliefs() -> Beliefs:
    """Two variants with qualities N(0.8, 0.1) that correlate by 0.5, and a Gaussian judge of each."""
    rng = np.random.default_rng(1)
    z = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]], TRAIN)
    heard = R * z + math.sqrt(1.0 - R**2) * rng.standard_normal(z.shape)
    return Beliefs(0.8 + 0.1 * z, np.full(z.shape, 0.8), norm.cdf(heard))


def test_a_word_is_worth_its_conditional_expectation(beliefs: Beliefs) -> None:
    for g in (-1.5, 0.0, 1.0):
        assert beliefs.word(0, float(norm.cdf(g)), 0.8) == pytest.approx(0.1 * R * g, abs=0.004)
    assert beliefs.after(()).spread == pytest.approx((0.1 * R, 0.1 * R), rel=0.03)


def test_a_word_on_one_image_tells_of_another(beliefs: Beliefs) -> None:
    """E[z_1 | g_0] = 0.5 R g_0; with both words, the regression on two variables that correlate by 0.5 R^2."""
    word = beliefs.word(0, float(norm.cdf(-1.0)), 0.8)
    after = beliefs.after((0,))
    assert posterior(after, [0.8, 0.8], [word], 1) == pytest.approx(0.8 - 0.1 * 0.5 * R, abs=0.004)
    assert posterior(after, [0.8, 0.8], [word], 0) == pytest.approx(0.8 - 0.1 * R, abs=0.004)
    words = [word, beliefs.word(1, float(norm.cdf(1.0)), 0.8)]
    rho = 0.5 * R**2
    exact = np.linalg.solve([[1.0, rho], [rho, 1.0]], [R, 0.5 * R]) @ [-1.0, 1.0]
    assert posterior(beliefs.after((0, 1)), [0.8, 0.8], words, 0) == pytest.approx(0.8 + 0.1 * exact, abs=0.004)
    # What is left to learn from the second word: its share that the first did not tell.
    assert after.spread[1] == pytest.approx(0.1 * R * math.sqrt(1.0 - rho**2), rel=0.03)


def test_a_judge_that_guesses_tells_nothing() -> None:
    rng = np.random.default_rng(2)
    quality = rng.random((TRAIN, 2))
    blind = Beliefs(quality, np.full(quality.shape, 0.5), rng.random(quality.shape))
    assert max(blind.after(()).spread) < 0.01
    assert blind.after((0,)).spread[0] < 1e-4


@pytest.mark.parametrize(("mean", "spread", "cost"), [(0.8, 0.1, 0.01), (0.5, 0.2, 0.15), (0.9, 0.05, 0.3)])
def test_a_reservation_is_where_another_image_just_pays(mean: float, spread: float, cost: float) -> None:
    from_s = reservation(mean, spread, cost)
    x = np.linspace(mean - 8 * spread, mean + 8 * spread, 200_001)
    gain = float(trapezoid(np.maximum(x - from_s, 0.0) * norm.pdf(x, mean, spread), x))
    assert gain == pytest.approx(cost, rel=1e-3)


def test_without_a_judge_a_reservation_is_quality_less_cost() -> None:
    assert reservation(0.9, 0.0, 0.2) == pytest.approx(0.7)
    assert reservation(0.9, 0.1, 0.0) == pytest.approx(0.9 + 0.6)  # free: as good as always
    assert expected_rise(0.0) == pytest.approx(1.0 / math.sqrt(2.0 * math.pi))


def test_the_chance_of_a_second_image(beliefs: Beliefs) -> None:
    """Against drawing both words: the second image is made where it is expected to gain more than it costs."""
    rng = np.random.default_rng(3)
    first, second = rng.multivariate_normal([0.0, 0.0], [[1.0, 0.5 * R**2], [0.5 * R**2, 1.0]], 100_000).T
    made = 0.8 + 0.1 * R * first
    told = 0.8 + 0.1 * 0.5 * R * first  # of the other, after the first word
    spread = 0.1 * R * math.sqrt(1.0 - (0.5 * R**2) ** 2)
    other = told + spread * (second - 0.5 * R**2 * first) / math.sqrt(1.0 - (0.5 * R**2) ** 2)
    for cost in (0.0, 0.02, 0.2):
        made_too = np.array([reservation(m, spread, cost) for m in told]) > made
        gain = np.maximum(other - made, 0.0) - cost
        found = second_gains(beliefs, np.array([[0.8, 0.8]]), 0, 1, np.array([cost]))[0, 0]
        assert found == pytest.approx(float((gain * made_too).mean()), abs=0.002)


# -- sequences ---------------------------------------------------------------------------------------------

WORK_S = np.array([[4.0, 0.0], [0.0, 1.0]])


def test_a_sequence_yields_what_drawing_says() -> None:
    """Light first, then heavy for the half that the judge likes least; all of independent N(mean, 0.1)."""
    quality = np.array([[0.9, 0.85]])
    found = worthwhile(quality, 0.01 * np.eye(2), WORK_S, [4.0, 1.0], [0, 1], 12.0)
    way = next(
        i
        for i, variants in enumerate(found.variants)
        if variants == (1, 0) and found.work_s[:, i].tolist() == [2.0, 1.0]
    )
    rng = np.random.default_rng(4)
    heavy, light = (quality[0] + 0.1 * rng.standard_normal((400_000, 2))).T
    on = light < np.median(light)
    drawn = np.where(on, np.maximum(light, heavy), light).mean()
    assert found.quality[0, way] == pytest.approx(drawn, abs=0.003)
    # No sequence is better than the best of all images.
    assert found.quality.max() <= np.maximum(light, heavy).mean() + 0.003


def test_no_sequence_without_a_judge_or_without_time() -> None:
    quality = np.array([[0.9, 0.85]])
    assert not worthwhile(quality, np.zeros((2, 2)), WORK_S, [4.0, 1.0], [0, 1], 12.0).variants
    assert not worthwhile(quality, 0.01 * np.eye(2), WORK_S, [4.0, 1.0], [0, 1], 4.9).variants
    # Variants of one model are no sequence.
    one = np.array([[4.0, 1.0]])
    assert not worthwhile(quality, 0.01 * np.eye(2), one, [4.0, 1.0], [0, 1], 12.0).variants
