"""The Profile: what a cluster's GPUs do to prompts, as tables of latency, load time and quality.

A profile is a folder: ``profile.json`` (the :class:`Manifest`) and one Parquet file per table. Whoever
measures (:mod:`calibration`), imports (:mod:`argus_sim.profile.importing`) or invents one writes the same
tables, and the simulator reads nothing else about hardware and models.

>>> profile = Profile.load("artefact-a100")
>>> [profile.variants[v].name for v in profile.ladder("AC")]
['sdxl', 'sdxl/ac-5', 'sdxl/ac-10', 'sdxl/ac-15', 'sdxl/ac-20', 'sdxl/ac-25']
>>> round(profile.latency(profile.variant_id("sdxl/ac-25"), 1).mean_s, 2)
2.1
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.domain import Variant, VariantId
from argus_sim.errors import InputError, did_you_mean
from argus_sim.profile import checks
from argus_sim.profile import tables as profile_tables
from argus_sim.profile.latency import Latency
from argus_sim.profile.tables import BASE_STRATEGY, OPTIONAL_TABLES, SCHEMAS, Manifest
from argus_sim.provenance import Kind, Provenance, worst

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

__all__ = ["Profile", "shipped_profiles"]


class Profile:
    """Immutable view of a profile's tables; variants and prompts are known by their position.

    Build one with :meth:`load` or :meth:`from_tables`; both check everything. Arrays are read-only and
    shared. P is the number of prompts, V of variants.
    """

    def __init__(self, manifest: Manifest, tables: Mapping[str, pd.DataFrame]) -> None:
        """Trusts its arguments: tables as :meth:`from_tables` normalises them."""
        self.manifest = manifest
        self._tables = dict(tables)

    # ---- building and storing

    @classmethod
    def from_tables(
        cls, manifest: Manifest, tables: Mapping[str, pd.DataFrame], *, where: str | None = None
    ) -> Profile:
        """Check and keep the tables.

        Raises:
            InputError: Lists everything that is wrong, not only the first.
        """
        problems: list[str] = []
        for table in tables:
            if table not in SCHEMAS:
                problems.append(f"unknown table {table!r}{did_you_mean(table, SCHEMAS)}")
        kept: dict[str, pd.DataFrame] = {}
        for table in SCHEMAS:
            if table in tables:
                frame = profile_tables.normalise(table, tables[table], problems)
                if frame is not None:
                    kept[table] = frame
            elif table not in OPTIONAL_TABLES:
                problems.append(f"table {table} is missing")
        if not problems:  # the checks across tables need every table whole
            problems, _ = checks.check(manifest, kept)
        if problems:
            head = f"profile {manifest.name!r} has {len(problems)} problem{'s' * (len(problems) > 1)}:"
            raise InputError("\n  - ".join([head, *problems]), where=where)
        return cls(manifest, kept)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Profile:
        """Load a shipped profile by name or any by its folder.

        Raises:
            InputError: There is no such profile, or it is not sound.
        """
        folder = Path(name_or_path)
        if not (folder / "profile.json").is_file():
            shipped = shipped_profiles()
            if str(name_or_path) not in shipped:
                if folder.is_dir():
                    raise InputError("the folder has no profile.json", where=str(folder))
                hint = did_you_mean(str(name_or_path), shipped)
                raise InputError(f"no profile {str(name_or_path)!r}: neither a folder nor shipped{hint}")
            folder = shipped[str(name_or_path)]
        manifest, tables = profile_tables.read_folder(folder)
        return cls.from_tables(manifest, tables, where=str(folder))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder at once: it is there whole or not at all, and equal profiles give equal bytes.

        Raises InputError when `path` holds something that is not of a profile and would be deleted.
        """
        profile_tables.write_folder(Path(path), self.manifest, self._tables)

    def validate(self) -> tuple[str, ...]:
        """Check again, as :meth:`from_tables` does, and return remarks on what is odd but not wrong."""
        Profile.from_tables(self.manifest, self._tables)
        return tuple(checks.check(self.manifest, self._tables)[1])

    def digest(self) -> str:
        """SHA-256 (hex) over the logical content of all files: what a run's lock file records."""
        return profile_tables.digest(self.manifest, self._tables)

    # ---- identity

    @property
    def name(self) -> str:
        return self.manifest.name

    def _has_no(self, what: str, name: str, allowed: Iterable[str]) -> InputError:
        return InputError(f"profile {self.name!r} has no {what} {name!r}{did_you_mean(name, allowed)}")

    def __repr__(self) -> str:
        return f"<Profile {self.name}: {len(self.variants)} variants, {len(self.prompts)} prompts>"

    def table(self, name: str) -> pd.DataFrame:
        """A copy of one table. Raises InputError for a table that is not there."""
        if name not in self._tables:
            raise self._has_no("table", name, self._tables)
        return self._tables[name].copy()

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(self._tables)

    def provenance_of(self, table: str) -> tuple[Provenance, ...]:
        """Origins of a table's rows. Raises InputError for a table that is not there."""
        if table not in self._tables:
            raise self._has_no("table", table, self._tables)
        return self.manifest.provenance[table]

    def measured_summary(self) -> dict[str, Kind]:
        """Table -> the least trustworthy origin among its rows: what a report may call it."""
        return {table: worst(self.manifest.provenance[table]) for table in self._tables}

    # ---- variants and latency

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """All variants; the index is the variant's id."""
        columns = [self._tables["variants"][column].tolist() for column in SCHEMAS["variants"]]
        columns[-1] = [None if pd.isna(memory) else memory for memory in columns[-1]]
        return tuple(Variant(*row) for row in zip(*columns, strict=True))

    @cached_property
    def _variant_ids(self) -> dict[str, VariantId]:
        return {variant.name: i for i, variant in enumerate(self.variants)}

    def variant_id(self, name: str) -> VariantId:
        """Position of a variant. Raises InputError, with the nearest name, for an unknown one."""
        if name not in self._variant_ids:
            raise self._has_no("variant", name, self._variant_ids)
        return self._variant_ids[name]

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Distinct models, in the order of the variants."""
        return tuple(dict.fromkeys(variant.model for variant in self.variants))

    @cached_property
    def base(self) -> VariantId:
        return self.variant_id(self.manifest.base)

    @cached_property
    def strategies(self) -> tuple[str, ...]:
        """Names of the ladders, sorted; `BASE` is in each and none of its own."""
        return tuple(sorted({v.strategy for v in self.variants} - {BASE_STRATEGY}))

    def ladder(self, strategy: str) -> tuple[VariantId, ...]:
        """Variants of a ladder by level, base first; batch-1 latency does not rise along it (quality may).

        Raises:
            InputError: There is no such ladder.
        """
        if strategy not in self.strategies:
            raise self._has_no("ladder", strategy, self.strategies)
        rungs = [i for i, variant in enumerate(self.variants) if variant.strategy == strategy]
        return (self.base, *sorted(rungs, key=lambda i: self.variants[i].level))

    @cached_property
    def _latency(self) -> dict[VariantId, dict[int, Latency]]:
        out: dict[VariantId, dict[int, Latency]] = {i: {} for i in range(len(self.variants))}
        rows = profile_tables.native_latency(self.manifest, self._tables["latency"]).sort_values("batch_size")
        for name, batch, entry in zip(
            rows["variant"], rows["batch_size"].tolist(), _latencies(rows), strict=True
        ):
            out[self._variant_ids[name]][batch] = entry
        return out

    @cached_property
    def _after_idle(self) -> dict[tuple[VariantId, int], tuple[tuple[float, Latency], ...]]:
        out: dict[tuple[VariantId, int], tuple[tuple[float, Latency], ...]] = {}
        if "after_idle" in self._tables:
            native = profile_tables.native_latency(self.manifest, self._tables["latency"])
            key = profile_tables.KEYS["latency"]
            rows = self._tables["after_idle"].merge(native[key], on=key).sort_values("idle_s", kind="stable")
            columns = (rows[c].tolist() for c in ("variant", "batch_size", "idle_s"))
            for name, batch, idle_s, entry in zip(*columns, _latencies(rows), strict=True):
                cell = self._variant_ids[name], batch
                out[cell] = (*out.get(cell, ()), (idle_s, entry))
        return out

    def batch_sizes(self, variant: VariantId) -> tuple[int, ...]:
        """Batch sizes with a known latency, ascending; 1 is always there."""
        return tuple(self._latency[variant])

    def latency(self, variant: VariantId, batch: int) -> Latency:
        """Service time of a batch at the profile's resolution (or the variant's own, where it has another).

        Raises:
            InputError: The combination is not in the profile; nothing is interpolated.
        """
        known = self._latency[variant]
        if batch not in known:
            name, there = self.variants[variant].name, ", ".join(map(str, known))
            raise InputError(
                f"profile {self.name!r} has no latency of {name!r} in batches of {batch}; it has {there}"
            )
        return known[batch]

    def after_idle(self, variant: VariantId, batch: int) -> tuple[tuple[float, Latency], ...]:
        """Service times of a batch that comes after a pause: ``(idle_s, latency)``, the shortest pause first.

        Each holds from that much idleness of the worker on; before the first, and where there are none,
        :meth:`latency` holds, which is that of a batch right after another.
        """
        return self._after_idle.get((variant, batch), ())

    def load_samples_s(self, model: str, source: str = "disk") -> Floats:
        """Observed times to bring a model's weights onto the GPU, ascending: an empirical sample, seconds.

        Args:
            model: Name of the model.
            source: Where the weights come from: ``disk``, ``host`` memory, or already on the ``gpu``.

        Raises:
            InputError: The combination is not in the profile.
        """
        rows = self._tables["loads"]
        if model not in self.models:
            raise self._has_no("model", model, self.models)
        mine = rows.loc[rows["model"] == model]
        found = mine.loc[mine["source"] == source, "seconds"].to_numpy(dtype=np.float64)
        if not len(found):
            there = ", ".join(sorted(set(mine["source"])))
            raise InputError(f"profile {self.name!r} has no load of {model!r} from {source!r}; it has {there}")
        return _frozen(found)

    # ---- prompts and quality

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Identifiers of the prompts; the index is what a request carries."""
        return tuple(self._tables["prompts"]["prompt"])

    @cached_property
    def prompt_texts(self) -> tuple[str, ...]:
        return tuple(self._tables["prompts"]["text"])

    @cached_property
    def split(self) -> tuple[str, ...]:
        """``train`` or ``test`` per prompt: predictors learn from the first and are judged on the second."""
        return tuple(self._tables["prompts"]["split"])

    @cached_property
    def is_train(self) -> Bools:
        """bool[P]"""
        return _frozen(np.array([name == "train" for name in self.split], dtype=np.bool_))

    def quality(self, metric: str | None = None) -> Floats:
        """float64[P, V]: mean score over seeds, NaN where absent; the primary metric by default.

        Raises:
            InputError: The profile has no scores in that metric.
        """
        return self._quality[self._metric(metric)]

    def relative_quality(self, metric: str | None = None) -> Floats:
        """float64[P, V] in [0, 1]: quality over the best of any variant for the prompt; NaN where absent."""
        return self._ratios(self._metric(metric))[0]

    def quality_relative_to_base(self, metric: str | None = None) -> Floats:
        """float64[P, V]: quality over the base's, above 1 where an approximation wins; NaN where absent."""
        return self._ratios(self._metric(metric))[1]

    def _metric(self, metric: str | None) -> str:
        name = self.manifest.metric if metric is None else metric
        if name not in self._quality:
            raise self._has_no("metric", name, self._quality)
        return name

    @cached_property
    def _quality(self) -> dict[str, Floats]:
        rows = self._tables["quality"]
        shape = (len(self.prompts), len(self.variants))
        prompt = pd.Index(self.prompts).get_indexer(pd.Index(rows["prompt"]))
        variant = pd.Index([v.name for v in self.variants]).get_indexer(pd.Index(rows["variant"]))
        cell = prompt * shape[1] + variant
        out: dict[str, Floats] = {}
        for metric in dict.fromkeys(rows["metric"]):
            mine = (rows["metric"] == metric).to_numpy(dtype=bool)
            count = np.bincount(cell[mine], minlength=shape[0] * shape[1])
            total = np.bincount(cell[mine], rows["score"].to_numpy()[mine], minlength=shape[0] * shape[1])
            with np.errstate(invalid="ignore"):
                out[metric] = _frozen((total / count).reshape(shape))
        return out

    @cached_property
    def _ratio_cache(self) -> dict[str, tuple[Floats, Floats]]:
        return {}

    def _ratios(self, metric: str) -> tuple[Floats, Floats]:
        if metric not in self._ratio_cache:
            score = self._quality[metric]
            best, base = np.fmax.reduce(score, axis=1, keepdims=True), score[:, [self.base]]
            if not ((score >= 0) | np.isnan(score)).all() or not (base > 0).all():
                raise InputError(
                    f"profile {self.name!r}: no ratio of {metric!r} can be formed:"
                    " scores are negative, or the base's are zero or absent"
                )
            self._ratio_cache[metric] = (_frozen(score / best), _frozen(score / base))
        return self._ratio_cache[metric]

    @cached_property
    def _similarity(self) -> Floats | None:
        if "similarity" not in self._tables:
            return None
        rows = self._tables["similarity"]
        nearest = rows.groupby("prompt")["similarity"].max().reindex(list(self.prompts))
        without = nearest.index[nearest.isna()]
        if len(without):
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            raise InputError(
                f"table similarity has no row for prompt {without[0]!r}{more}", where=f"profile {self.name!r}"
            )
        return _frozen(nearest.to_numpy(dtype=np.float64, copy=True))

    def similarity(self) -> Floats | None:
        """float64[P]: similarity of each prompt's nearest neighbour in a warm cache; None without such a table.

        Raises:
            InputError: The table has some prompts only.
        """
        return self._similarity


def _latencies(rows: pd.DataFrame) -> list[Latency]:
    columns = (rows[c].tolist() for c in ("mean_s", "std_s", "p50_s", "p90_s", "p99_s"))
    found = []
    for mean, std, p50, p90, p99 in zip(*columns, strict=True):
        std = 0.0 if math.isnan(std) else std
        found.append(Latency.lognormal(mean, std) if math.isnan(p50) else Latency(mean, std, p50, p90, p99))
    return found


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array


def shipped_profiles() -> dict[str, Path]:
    """Name -> folder of every profile that comes with the package.

    The calibration package is located, not imported: imports run one way, and the simulator needs no torch.
    """
    spec = importlib.util.find_spec("calibration")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = (file.parent for root in roots for file in Path(root).glob("profiles/*/profile.json"))
    return {folder.name: folder for folder in sorted(found)}
