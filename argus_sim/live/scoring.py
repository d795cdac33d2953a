"""Are the images of a live run as good as the profile says? They are rated as the profile's were."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.record import Floats, RunRecord
from calibration.failures import is_out_of_memory
from calibration.measure import default_scorers
from calibration.pipelines import need_torch
from calibration.scorers import Scorer, build, metric_of


@dataclass(frozen=True)
class Scored:
    """Scores of some images of a live run, and what the profile has for their prompts and variants.

    Attributes:
        metric, origin: What was rated, and by what.
        prompt, variant: Of each, n long.
        live, profile: float64[n]; of the profile, the mean over its seeds.
    """

    metric: str
    origin: str
    prompt: tuple[str, ...]
    variant: tuple[str, ...]
    live: Floats
    profile: Floats

    @property
    def error(self) -> float:
        """Mean live score over the profile's, minus 1."""
        return float(self.live.mean() / self.profile.mean() - 1)

    @property
    def half_width(self) -> float:
        """Of the error's 95 % interval: images have other noise than the profile's, so scores scatter.

        Images of one prompt are set against one number of the profile, so that prompts are what is independent.
        """
        names, of = np.unique(self.prompt, return_inverse=True)
        if len(names) < 2:
            return math.nan
        difference = self.live - self.profile
        sums = np.bincount(of, weights=difference - difference.mean())
        error = math.sqrt(len(names) / (len(names) - 1) * float(sums @ sums)) / len(difference)
        return float(1.96 * error / self.profile.mean())

    def words(self) -> list[tuple[str, str]]:
        """By variant, and all together."""
        rows = [(name, np.array([v == name for v in self.variant])) for name in dict.fromkeys(self.variant)]
        if len(rows) > 1:
            rows.append(("all", np.ones(len(self.live), dtype=bool)))
        told = [
            (
                name,
                replace(
                    self,
                    prompt=tuple(np.array(self.prompt)[r]),
                    variant=(name,) * int(r.sum()),
                    live=self.live[r],
                    profile=self.profile[r],
                ),
            )
            for name, r in rows
        ]
        return [
            (
                f"{self.metric} of {len(part.live)} images, {name}",
                f"profile {part.profile.mean():.2f}, live {part.live.mean():.2f}, "
                f"{100 * part.error:+.2f} % ± {100 * part.half_width:.2f}",
            )
            for name, part in told
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "metric": self.metric,
            "origin": self.origin,
            "images": len(self.live),
            "profile": float(self.profile.mean()),
            "live": float(self.live.mean()),
            "error": self.error,
            "half_width": self.half_width,
        }


def scorer_of(profile: Profile, zoo: str, name: str | None = None) -> str:
    """The scorer that made the profile's metric: the one that is named, or the zoo's own.

    Raises:
        InputError: There is none at hand, or it makes another metric.
    """
    metric = profile.manifest.metric
    names = (name,) if name else default_scorers(zoo)
    for found in names:
        if metric_of(found) == metric:
            return found
    made = ", ".join(metric_of(found) for found in names)
    raise InputError(f"profile {profile.name!r} was rated by {metric!r}; found {made}", where="--scorer")


def score(
    images: Mapping[int, bytes], texts: Mapping[int, str], record: RunRecord, profile: Profile, scorer: str
) -> Scored:
    """Rate images.

    Args:
        images, texts: PNG and prompt by row of the record.
        scorer: As :func:`scorer_of` names it.

    Raises:
        InputError: No image is there to be rated.
    """
    table = profile.table("quality")
    known = table[table["metric"] == profile.manifest.metric].groupby(["prompt", "variant"])["score"].mean()
    rows, expected = [], []
    for row in sorted(images):
        key = record.prompts[record.prompt[row]], record.variants[record.variant[row]]
        if record.variant[row] >= 0 and key in known.index:
            rows.append(row)
            expected.append(float(known.loc[key]))
    if not rows:
        raise InputError("no image came that the profile has a score for", where="--score")
    pixels = np.stack([_pixels(images[row]) for row in rows])
    judge, scores = _rated(scorer, pixels, [texts[row] for row in rows])
    variants = tuple(record.variants[record.variant[row]] for row in rows)
    prompts = tuple(record.prompts[record.prompt[row]] for row in rows)
    live = np.asarray(scores, dtype=np.float64)
    return Scored(judge.metric, judge.origin, prompts, variants, live, np.array(expected))


def _rated(scorer: str, images: npt.NDArray[np.float32], texts: list[str]) -> tuple[Scorer, Floats]:
    """The scorer and what it says: on the CPU where a GPU has no room for it beside the server's models."""
    if need_torch().cuda.is_available():
        try:
            judge = build(scorer, device="cuda")
            return judge, judge.score(images, texts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    judge = build(scorer, device="cpu")
    return judge, judge.score(images, texts)


def _pixels(png: bytes) -> npt.NDArray[np.float32]:
    """float32[H, W, 3] in [0, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255.0)
