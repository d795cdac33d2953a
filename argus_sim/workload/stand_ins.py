"""Recorded texts, each with the profile's prompt that stands in for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from argus_sim.core.affinity import QualityPredictor
from argus_sim.profile import Profile
from argus_sim.workload.prompts import RecordedTexts


def with_stand_ins(
    lines: Sequence[str], profile: Profile, predictor: QualityPredictor, start: int, where: str
) -> RecordedTexts:
    """A text that the profile knows is its own prompt; for another stands in whom the live server takes, too.

    Args:
        lines: Texts in the order of a log.
        profile: Whose prompts.
        predictor: Of their quality, from texts.
        start: The line that the first request has.
        where: Whose the texts are, for messages.
    """
    texts = tuple(dict.fromkeys(lines))
    at = {text: i for i, text in enumerate(texts)}
    prompt = {text: i for i, text in reversed(list(enumerate(profile.prompt_texts)))}
    unknown = [text for text in texts if text not in prompt]
    if unknown:
        prompt.update(zip(unknown, predictor.stand_ins(unknown).tolist(), strict=True))
    return RecordedTexts(
        texts,
        np.array([at[text] for text in lines], dtype=np.int64),
        np.array([prompt[text] for text in texts], dtype=np.int64),
        start,
        where,
    )
