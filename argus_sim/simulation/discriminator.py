"""The discriminator of a cascade: how good an image is, as far as one can tell without a reference."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import ndtr, ndtri

from argus_sim.domain import VariantId
from argus_sim.provenance import Provenance

#: Correlation of the best recorded judge with the relative quality of images.
RECORDED_CORRELATION: Final = 0.51
RECORDED: Final = Provenance(
    kind="recorded",
    source="TIFA-160, github.com/Yushi-Hu/tifa at 8e37050f, rated again by github.com/j-min/DSG at 7330119a",
    derived="TIFA by mPLUG-large, the best of six judges of 160 images each of SD 1.1, 1.5 and 2.1, against the"
    " relative quality that people saw; normal scores, within a model, corrected for the raters' noise"
    " (CLIPScore: 0.33)",
)


class DiscriminatorConfig(BaseModel):
    """How well the discriminator judges.

    Attributes:
        correlation: Between its confidence and the relative quality of the image over prompts, both as normal
            scores: 1 is a perfect judge, 0 one that guesses. The default is that of the best of six judges in
            a recorded data set (:data:`RECORDED`); the results of a cascade rest on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    correlation: Annotated[float, Field(ge=0, le=1)] = RECORDED_CORRELATION


class Discriminator:
    """A Gaussian copula of confidence and quality.

    Normal scores are brought to mean 0 and standard deviation 1: where many images are equally good (1, say,
    where a variant is the best for many prompts) their own spread is smaller, and the judge would be worse than
    it is configured to be. Confidences of one variant are uniform in (0, 1) as far as qualities do not tie.

    Each image brings its own luck: what a request has with a variant is the same under every policy, so that they
    are compared on common random numbers, and says nothing about what it has with another variant. (If the luck
    of a request were shared, two images of it could be compared without any error.)

    Args:
        config: How well it judges.
        quality: float64[P, V], relative quality of each prompt at each variant.
        prompt: int[n], that of each request there will be.
        rng: Draws the luck.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        quality: npt.NDArray[np.float64],
        prompt: npt.NDArray[np.integer],
        rng: np.random.Generator,
    ) -> None:
        # Imported here: half a second that nobody without a cascade needs to spend.
        from scipy.stats import rankdata

        score = ndtri((rankdata(quality, axis=0) - 0.5) / len(quality))  # ties share a rank
        score -= score.mean(axis=0)
        spread = score.std(axis=0)
        # Where all images of a variant are equally good, there is nothing to tell.
        score = np.divide(score, spread, out=np.zeros_like(score), where=spread > 1e-9)
        self._score = config.correlation * score
        self._spread = math.sqrt(1.0 - config.correlation**2)
        self._prompt = prompt
        #: By variant; drawn when its first image is judged.
        self._rng = rng.spawn(quality.shape[1])
        self._confidence: list[array[float] | None] = [None] * quality.shape[1]

    def confidence(self, rows: Sequence[int], variant: VariantId) -> list[float]:
        """What it says, in (0, 1), of the images that ``variant`` made for these requests."""
        says = self._confidence[variant]
        if says is None:
            # For all requests at once: one by one takes longer than all else that is done for a batch.
            luck = self._spread * self._rng[variant].standard_normal(len(self._prompt))
            sure = ndtr(self._score[self._prompt, variant] + luck)
            says = self._confidence[variant] = array("d", sure.tobytes())
        return [says[row] for row in rows]

    def of_all(self) -> npt.NDArray[np.float64]:
        """float64[n, V]: what it says of one image for each request by each variant."""
        rows = range(len(self._prompt))
        return np.array([self.confidence(rows, v) for v in range(len(self._confidence))]).T
