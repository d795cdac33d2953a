"""What anybody may know before the first request arrives: the profile without its secrets.

Latency tables, load times and *mean* qualities are public knowledge to a policy. The quality of a served prompt
and the service time of a running batch are not: they stay with the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from argus_sim.domain import Variant, VariantId
from argus_sim.errors import InputError, did_you_mean
from argus_sim.profile import Profile


@dataclass(frozen=True)
class Timings:
    """How long things take on GPUs of one kind, in the shape that the hot path reads.

    Attributes:
        name: Of the kind.
        batch_sizes, max_batch: ``batch_sizes[v]`` are those of variant v, ascending; ``max_batch[v]`` is the
            last.
        mean_s, p99_s: ``mean_s[v][b]`` is the batch latency of variant v at batch size b; infinite where the
            profile has no such batch size (index 0 included).
        fit: ``fit[v][n]`` is the batch size to run of v when n requests wait, for n up to ``max_batch[v]``: the
            profiled size with the highest throughput that n requests fill.
        load_s: Mean time to put each model onto a GPU.
    """

    name: str
    batch_sizes: tuple[tuple[int, ...], ...]
    max_batch: tuple[int, ...]
    mean_s: tuple[tuple[float, ...], ...]
    p99_s: tuple[tuple[float, ...], ...]
    fit: tuple[tuple[int, ...], ...]
    load_s: tuple[float, ...]

    @classmethod
    def read(cls, name: str, profile: Profile, variants: Sequence[str], models: Sequence[str]) -> Timings:
        """The timings of a profile, for these variants and models in this order."""
        inf = float("inf")
        mean_s, p99_s, fit, sizes = [], [], [], []
        for v in map(profile.variant_id, variants):
            batches = profile.batch_sizes(v)
            means, tails = [inf] * (batches[-1] + 1), [inf] * (batches[-1] + 1)
            for b in batches:
                cell = profile.latency(v, b)
                means[b], tails[b] = cell.mean_s, cell.p99_s
            mean_s.append(tuple(means))
            p99_s.append(tuple(tails))
            fit.append(_fit(batches, means))
            sizes.append(batches)
        return cls(
            name=name,
            batch_sizes=tuple(sizes),
            max_batch=tuple(b[-1] for b in sizes),
            mean_s=tuple(mean_s),
            p99_s=tuple(p99_s),
            fit=tuple(fit),
            load_s=tuple(float(np.mean(profile.load_samples_s(m))) for m in models),
        )

    def up_to(self, max_batch: int | None) -> Self:
        """The same without the larger batch sizes; itself for None."""
        if max_batch is None:
            return self
        sizes = tuple(tuple(b for b in batches if b <= max_batch) for batches in self.batch_sizes)
        tops = tuple(batches[-1] for batches in sizes)
        return replace(
            self,
            batch_sizes=sizes,
            max_batch=tops,
            mean_s=tuple(row[: top + 1] for row, top in zip(self.mean_s, tops, strict=True)),
            p99_s=tuple(row[: top + 1] for row, top in zip(self.p99_s, tops, strict=True)),
            fit=tuple(row[: top + 1] for row, top in zip(self.fit, tops, strict=True)),
        )

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
        """The largest batch size that :meth:`throughput_per_s` counts (Nexus' rule), at least the smallest."""
        sizes = self.batch_sizes[variant]
        return max([b for b in sizes if self.p99_s[variant][b] <= limit_s], default=sizes[0])


def _fit(batches: Sequence[int], mean_s: Sequence[float]) -> tuple[int, ...]:
    fits = [0] * (batches[-1] + 1)
    for n in range(1, len(fits)):
        better = n in batches and (not fits[n - 1] or n / mean_s[n] > fits[n - 1] / mean_s[fits[n - 1]])
        fits[n] = n if better else fits[n - 1]
    return tuple(fits)


class Kind(NamedTuple):
    """Some GPUs of a cluster that are alike.

    Attributes:
        name: How results and policies call the kind.
        workers: How many there are.
        hardware: The profile that says how long things take on them. Its qualities do not count.
    """

    name: str
    workers: int
    hardware: Profile


@dataclass(frozen=True)
class Catalog(Timings):
    """The tables of a profile in the shape that the hot path reads.

    What it inherits are the timings of every worker where all are alike. Where there are several kinds, ``kinds``
    has theirs, and what is inherited are those of the profile.

    Attributes:
        variants: The operating points; a variant's id is its position.
        base: Id of the base variant.
        models: The weights there are.
        model: ``model[v]`` is the index in ``models`` of the weights that variant v needs.
        ladders: Strategy -> variants, least approximate first.
        quality: float64[V], mean relative quality of each variant over the training prompts.
        quality_to_base: float64[V], the same relative to the base variant.
        kinds: The kinds of GPUs in the cluster, at least one.
        kind_of: Position in ``kinds`` of each worker; empty where there is but one kind.
    """

    variants: tuple[Variant, ...]
    base: VariantId
    models: tuple[str, ...]
    model: tuple[int, ...]
    ladders: dict[str, tuple[VariantId, ...]]
    quality: npt.NDArray[np.float64]
    quality_to_base: npt.NDArray[np.float64]
    kinds: tuple[Timings, ...]
    kind_of: tuple[int, ...] = ()

    @classmethod
    def of(cls, profile: Profile, kinds: Sequence[Kind] = (), *, where: str | None = None) -> Catalog:
        """The catalog of a cluster whose workers are of these kinds, in this order; of one kind without any.

        Raises:
            InputError: The profile has no training prompts, or that of a kind has other variants.
        """
        train = profile.is_train
        if not train.any():
            raise InputError(
                f"profile {profile.name!r} has no prompts with split 'train': nothing could be known of quality; "
                "an import gives that to half of them, by their texts, so have more prompts"
            )
        for kind in kinds:
            _same_variants(profile, kind, where)
        names = [variant.name for variant in profile.variants]
        own = Timings.read(profile.name, profile, names, profile.models)
        each = tuple(Timings.read(k.name, k.hardware, names, profile.models) for k in kinds) or (own,)
        if len(each) == 1:
            own = each[0]
        return cls(
            **{field.name: getattr(own, field.name) for field in fields(own)} | {"name": profile.name},
            variants=profile.variants,
            base=profile.base,
            models=profile.models,
            model=tuple(profile.models.index(v.model) for v in profile.variants),
            ladders={s: profile.ladder(s) for s in profile.strategies},
            quality=np.asarray(profile.relative_quality()[train].mean(axis=0)),
            quality_to_base=np.asarray(profile.quality_relative_to_base()[train].mean(axis=0)),
            kinds=each,
            kind_of=tuple(i for i, k in enumerate(kinds) for _ in range(k.workers)) if len(kinds) > 1 else (),
        )

    def of_worker(self, worker: int) -> Timings:
        """The timings of a worker's kind."""
        return self.kinds[self.kind_of[worker]] if self.kind_of else self.kinds[0]

    def workers_of(self, kind: int, workers: int) -> int:
        """How many of so many workers are of this kind."""
        return self.kind_of[:workers].count(kind) if self.kind_of else workers

    def cluster_throughput_per_s(
        self, variant: VariantId, workers: int, *, limit_s: float = float("inf")
    ) -> float:
        """Images/s of all workers together at this variant; see :meth:`throughput_per_s`."""
        return sum(
            self.workers_of(k, workers) * kind.throughput_per_s(variant, limit_s=limit_s)
            for k, kind in enumerate(self.kinds)
        )

    def up_to(self, max_batch: int | None) -> Self:
        if max_batch is None:
            return self
        return replace(super().up_to(max_batch), kinds=tuple(k.up_to(max_batch) for k in self.kinds))

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


def _same_variants(profile: Profile, kind: Kind, where: str | None) -> None:
    mine = {v.name: v.model for v in profile.variants}
    theirs = {v.name: v.model for v in kind.hardware.variants}
    if mine == theirs:
        return
    said = [
        f"{what} {', '.join(map(repr, names))}"
        for what, names in (
            ("it lacks", sorted(set(mine) - set(theirs))),
            ("it has beside them", sorted(set(theirs) - set(mine))),
            ("it runs with another model", sorted(v for v in set(mine) & set(theirs) if mine[v] != theirs[v])),
        )
        if names
    ]
    raise InputError(
        f"kind {kind.name!r}: profile {kind.hardware.name!r} must have the variants of {profile.name!r}; "
        + "; ".join(said),
        where=where,
    )
