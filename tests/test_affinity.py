"""Predictions for texts that a profile does not know."""

from __future__ import annotations

import numpy as np
import pytest

from argus_sim.core import affinity
from argus_sim.errors import InputError
from tests.make_profile import ladder


def test_a_text_of_a_test_prompt_is_predicted_as_the_prompt_was() -> None:
    profile = ladder()
    predictor = affinity.from_text(profile)
    assert predictor.of_texts is not None
    test = np.flatnonzero(~profile.is_train)
    again = predictor.of_texts([profile.prompt_texts[i] for i in test])
    np.testing.assert_allclose(again, predictor.predicted[test], rtol=1e-12)
    for index in test:
        stand_in = predictor.stand_in(profile.prompt_texts[index])
        np.testing.assert_allclose(predictor.predicted[stand_in], predictor.predicted[index], atol=1e-12)


def test_no_prompt_that_was_learnt_from_stands_in() -> None:
    profile = ladder()
    predictor = affinity.from_text(profile)
    texts = [f"{word} {word} number {i}" for i, word in enumerate(["a", "prompt", "fox", "of", "7", "19"] * 5)]
    assert not profile.is_train[predictor.stand_ins([*texts, *profile.prompt_texts])].any()


def test_the_perfect_predictor_reads_no_texts() -> None:
    with pytest.raises(InputError, match="predictor: text"):
        affinity.perfect(ladder()).stand_in("a fox")
