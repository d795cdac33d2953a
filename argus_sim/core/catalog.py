"""What anybody may know before the first request arrives: the profile without its secrets.

Latency tables, load times and *mean* qualities are public knowledge to a policy. The quality of a served prompt
and the service time of a running batch are not: they stay with the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argus_sim.domain import Variant, VariantId
from argus_sim.errors import InputError, did_you_mean
from argus_sim.profile import Profile


@dataclass(frozen=True)
class Catalog:
    """The tables of a profile in the shape that the hot path reads.

    Attributes:
        variants: The operating points; a variant's id is its position.
        base: Id of the base variant.
        model: ``model[v]`` is the index in ``models`` of the weights that variant v needs.
        mean_s, p99_s: ``mean_s[v][b]`` is the batch latency of variant v at batch size b; infinite where the
            profile has no such batch size (index 0 included).
        fit: ``fit[v][n]`` is the batch size to run of v when n requests wait, for n up to ``max_batch[v]``: the
            profiled size with the highest throughput that n requests fill.
        load_s: Mean time to put each model onto a GPU.
        quality: float64[V], mean relative quality of each variant over the training prompts.
        quality_to_base: float64[V], the same relative to the base variant.
    """

    name: str
    variants: tuple[Variant, ...]
    base: VariantId
    models: tuple[str, ...]
    model: tuple[int, ...]
    ladders: dict[str, tuple[VariantId, ...]]
    batch_sizes: tuple[tuple[int, ...], ...]
    max_batch: tuple[int, ...]
    mean_s: tuple[tuple[float, ...], ...]
    p99_s: tuple[tuple[float, ...], ...]
    fit: tuple[tuple[int, ...], ...]
    load_s: tuple[float, ...]
    quality: npt.NDArray[np.float64]
    quality_to_base: npt.NDArray[np.float64]

    @classmethod
    def of(cls, profile: Profile) -> Catalog:
        inf = float("inf")
        mean_s, p99_s, fit, sizes = [], [], [], []
        for v in range(len(profile.variants)):
            batches = profile.batch_sizes(v)
            means, tails, fits = [inf] * (batches[-1] + 1), [inf] * (batches[-1] + 1), [0] * (batches[-1] + 1)
            for b in batches:
                cell = profile.latency(v, b)
                means[b], tails[b] = cell.mean_s, cell.p99_s
            for n in range(1, len(fits)):
                better = n in batches and (not fits[n - 1] or n / means[n] > fits[n - 1] / means[fits[n - 1]])
                fits[n] = n if better else fits[n - 1]
            mean_s.append(tuple(means))
            p99_s.append(tuple(tails))
            fit.append(tuple(fits))
            sizes.append(batches)
        train = profile.is_train
        if not train.any():
            raise InputError(
                f"profile {profile.name!r} has no prompts with split 'train': nothing could be known of quality"
            )
        relative, to_base = profile.relative_quality(), profile.quality_relative_to_base()
        return cls(
            name=profile.name,
            variants=profile.variants,
            base=profile.base,
            models=profile.models,
            model=tuple(profile.models.index(v.model) for v in profile.variants),
            ladders={s: profile.ladder(s) for s in profile.strategies},
            batch_sizes=tuple(sizes),
            max_batch=tuple(b[-1] for b in sizes),
            mean_s=tuple(mean_s),
            p99_s=tuple(p99_s),
            fit=tuple(fit),
            load_s=tuple(float(np.mean(profile.load_samples_s(m))) for m in profile.models),
            quality=np.asarray(relative[train].mean(axis=0)),
            quality_to_base=np.asarray(to_base[train].mean(axis=0)),
        )

    def id_of(self, name: str, *, where: str | None = None) -> VariantId:
        """The id of a variant by its name; :class:`InputError` with the nearest name when there is none."""
        for index, variant in enumerate(self.variants):
            if variant.name == name:
                return index
        names = [v.name for v in self.variants]
        raise InputError(f"profile {self.name!r} has no variant {name!r}{did_you_mean(name, names)}", where=where)

    def ladder(self, strategy: str, *, where: str | None = None) -> tuple[VariantId, ...]:
        """The variants of a ladder, least approximate first; :class:`InputError` for an unknown strategy."""
        try:
            return self.ladders[strategy]
        except KeyError:
            raise InputError(
                f"profile {self.name!r} has no ladder {strategy!r}{did_you_mean(strategy, self.ladders)}",
                where=where,
            ) from None

    def throughput_per_s(self, variant: VariantId, *, limit_s: float = float("inf")) -> float:
        """Best images/s of one worker over the batch sizes whose 99th percentile latency is within ``limit_s``.

        Batch size 1 counts whatever its latency: a worker has no smaller step.
        """
        return max(
            b / self.mean_s[variant][b]
            for b in self.batch_sizes[variant]
            if b == self.batch_sizes[variant][0] or self.p99_s[variant][b] <= limit_s
        )

    def largest_batch(self, variant: VariantId, *, limit_s: float) -> int:
        """The largest batch size with a mean latency under ``limit_s`` (Nexus' rule), at least the smallest."""
        sizes = self.batch_sizes[variant]
        return max([b for b in sizes if self.mean_s[variant][b] < limit_s], default=sizes[0])
