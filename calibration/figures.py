"""What a profile says, as figures.

Latency against batch size, quality against latency, the histogram of affinity, the heat map of prompts and
levels, and the quality of approximate caching against the similarity of the cached prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from argus_sim.profile import Profile
from argus_sim.provenance import KINDS
from argus_sim.report.plot_style import head, label_points, save, styled
from calibration.assemble import ABSENT
from calibration.fit import affinity

Floats = npt.NDArray[np.float64]

_COLOURS: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#7A5C3E",
    "#117733",
)
_MARKERS: Final = "osD^vP*Xh"
_BASE: Final = "#4D4D4D"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, the name of its file and its caption; the first sentence is its title."""

    name: str
    caption: str
    figure: Figure


def pictures(profile: Profile, tolerance: float) -> list[Picture]:
    """All figures that the profile has the data for."""
    rated = profile.manifest.metric != ABSENT
    out = [
        Picture(
            "latency-batch",
            "Latency against batch size. Median time of a batch, and images per second: where the right curve is"
            " flat, batching gains nothing.",
            latency_against_batch(profile),
        )
    ]
    if rated:
        out.append(
            Picture(
                "quality-latency",
                "Quality against latency. Mean relative quality of each variant against its batch-1"
                " latency; the line joins variants that none beats in both.",
                quality_against_latency(profile),
            )
        )
        if profile.strategies:
            out.append(
                Picture(
                    "affinity",
                    "Affinity. Share of prompts by the deepest level that stays within the tolerance of the"
                    " best level of its ladder.",
                    affinity_histogram(profile, tolerance),
                )
            )
        out.append(
            Picture(
                "heat-map",
                "Prompts and variants. Relative quality of every prompt (row) at every variant (column); prompts"
                " are sorted by how much they lose.",
                heat_map(profile),
            )
        )
        if (figure := caching_against_similarity(profile)) is not None:
            out.append(
                Picture(
                    "ac-similarity",
                    "Approximate caching against similarity. Quality relative to the base by how similar the"
                    " prompt was whose latent the image started from; groups of equal size, 95 % intervals.",
                    figure,
                )
            )
    return out


def _colour(profile: Profile, strategy: str) -> str:
    if strategy == "BASE":
        return _BASE
    return _COLOURS[profile.strategies.index(strategy) % len(_COLOURS)]


def _marker(profile: Profile, strategy: str) -> str:
    if strategy == "BASE":
        return "o"
    return _MARKERS[profile.strategies.index(strategy) % len(_MARKERS)]


def _note(profile: Profile) -> str:
    kinds = profile.measured_summary()
    by_kind = {kind: [table for table in kinds if kinds[table] == kind] for kind in KINDS}
    said = "; ".join(f"{', '.join(tables)} {kind}" for kind, tables in by_kind.items() if tables)
    if len(set(kinds.values())) == 1:
        said = f"all of it {next(iter(kinds.values()))}"
    return f"profile {profile.name} on {profile.manifest.gpu}: {said}"


@styled
def latency_against_batch(profile: Profile) -> Figure:
    """Two panels: median seconds of a batch, and images per second."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted({b for v in range(len(profile.variants)) for b in profile.batch_sizes(v)})
    for v, variant in enumerate(profile.variants):
        batches = profile.batch_sizes(v)
        seconds = np.array([profile.latency(v, b).p50_s for b in batches])
        shades = [u.name for u in profile.variants if u.strategy == variant.strategy]
        fade = 1.0 - 0.6 * shades.index(variant.name) / max(len(shades), 1)
        look: dict[str, Any] = {
            "color": _colour(profile, variant.strategy),
            "marker": _marker(profile, variant.strategy),
            "markersize": 4,
            "alpha": fade,
        }
        left.plot(batches, seconds, label=variant.name, **look)
        right.plot(batches, np.array(batches) / seconds, **look)
    for ax, label in ((left, "seconds per batch"), (right, "images per second")):
        ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel=label)
        ax.set_xticks(sizes, [str(s) for s in sizes])
        ax.minorticks_off()
        _plain_ticks(ax)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=7.5)
    head(figure, "Latency against batch size", _note(profile))
    return figure


def _plain_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@styled
def quality_against_latency(profile: Profile) -> Figure:
    """One point per variant; the Pareto front as a line."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    ax = figure.add_subplot()
    quality = np.nanmean(profile.relative_quality(), axis=0)
    seconds = np.array([profile.latency(v, 1).p50_s for v in range(len(profile.variants))])
    front = pareto(seconds, quality)
    ax.plot(seconds[front], quality[front], color="#BBBBBB", linewidth=1.2, zorder=1)
    seen: set[str] = set()
    for v, variant in enumerate(profile.variants):
        label = {"BASE": "base"}.get(variant.strategy, variant.strategy)
        ax.scatter(
            seconds[v], quality[v], s=34, zorder=2,
            color=_colour(profile, variant.strategy), marker=_marker(profile, variant.strategy),
            label=None if label in seen else label,
        )  # fmt: skip
        seen.add(label)
    ax.set(xlabel="median latency of one image, s", ylabel=f"mean relative quality ({profile.manifest.metric})")
    ax.margins(x=0.2, y=0.1)
    ax.legend(loc="lower right")
    names = [v.name.partition("/")[2] or v.name for v in profile.variants]
    if len({v.model for v in profile.variants if "/" in v.name}) > 1:
        names = [v.name for v in profile.variants]
    label_points(ax, names, seconds, quality, fontsize=6.5)
    head(figure, "Quality against latency", _note(profile))
    return figure


def pareto(seconds: Floats, quality: Floats) -> npt.NDArray[np.int64]:
    """Indices of what nothing beats in both, by rising latency.

    >>> pareto(np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.8, 0.7])).tolist()
    [1, 0]
    """
    front: list[int] = []
    best = -np.inf
    for i in np.lexsort((-quality, seconds)):
        if quality[i] > best:
            front.append(int(i))
            best = quality[i]
    return np.array(front, dtype=np.int64)


@styled
def affinity_histogram(profile: Profile, tolerance: float) -> Figure:
    """A panel per ladder: share of prompts whose affinity is each level."""
    figure = Figure(figsize=(9.6, 1.5 + 1.9 * -(-len(profile.strategies) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(profile.strategies) // 3), 3, squeeze=False)
    for ax in panels.flat[len(profile.strategies) :]:
        ax.set_axis_off()
    for ax, strategy in zip(panels.flat, profile.strategies, strict=False):
        shares = affinity_shares(profile, strategy, tolerance)
        names = [
            profile.variants[v].name.partition("/")[2] or profile.variants[v].name
            for v in profile.ladder(strategy)
        ]
        bars = ax.bar(range(len(shares)), 100.0 * shares, color=_colour(profile, strategy), width=0.75)
        bars[0].set_color(_BASE)
        ax.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        ax.set_xticks(range(len(shares)), names, rotation=30, ha="right", fontsize=7)
        ax.set(title=strategy, ylabel="% of prompts", ylim=(0, max(105.0 * shares.max(), 10.0)))
        ax.grid(axis="x", visible=False)
    head(figure, f"Affinity within {100 * tolerance:g} % of the ladder's best", _note(profile))
    return figure


def affinity_shares(profile: Profile, strategy: str, tolerance: float) -> Floats:
    """float64[L]: share of prompts by affinity, base first."""
    quality = profile.relative_quality()[:, list(profile.ladder(strategy))]
    quality = quality[np.isfinite(quality).all(axis=1)]
    return np.bincount(affinity(quality, tolerance), minlength=quality.shape[1]) / len(quality)


@styled
def heat_map(profile: Profile) -> Figure:
    """Rows are prompts, sorted by mean relative quality; columns are variants."""
    quality = profile.relative_quality()
    order = np.argsort(np.nanmean(quality, axis=1), kind="stable")
    figure = Figure(figsize=(1.8 + 0.42 * quality.shape[1] + 1.0, 5.6), layout="constrained")
    ax = figure.add_subplot()
    low = float(np.nanpercentile(quality, 2))
    image = ax.imshow(quality[order], aspect="auto", cmap="cividis", vmin=low, vmax=1.0, interpolation="nearest")
    ax.set_xticks(
        range(quality.shape[1]), [v.name for v in profile.variants], rotation=60, ha="right", fontsize=7
    )
    ax.set_ylabel(f"{len(quality)} prompts, those that lose most at the top")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="relative quality", shrink=0.8, extend="min")
    head(figure, "Prompts and variants", profile.name)
    return figure


@styled
def _caching(profile: Profile, rungs: list[int], similarity: Floats) -> Figure:
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ax = figure.add_subplot()
    ratio = profile.quality_relative_to_base()
    bins = min(5, max(2, len(similarity) // 8))
    edges = np.array_split(np.argsort(similarity, kind="stable"), bins)
    for number, v in enumerate(rungs):
        x = [float(similarity[rows].mean()) for rows in edges]
        y = np.array([float(np.nanmean(ratio[rows, v])) for rows in edges])
        half = [1.96 * float(np.nanstd(ratio[rows, v])) / np.sqrt(max(len(rows), 1)) for rows in edges]
        shade = 0.25 + 0.75 * (number + 1) / len(rungs)
        ax.errorbar(
            x, y, yerr=half, marker="o", markersize=4, capsize=2, color=_COLOURS[0], alpha=shade,
            label=profile.variants[v].name,
        )  # fmt: skip
    ax.axhline(1.0, color=_BASE, linewidth=0.8, linestyle=(0, (4, 1.5)))
    ax.set(xlabel="similarity of the cached prompt (cosine)", ylabel="quality relative to the base")
    ax.legend(loc="lower right")
    head(figure, "Approximate caching against similarity", _note(profile))
    return figure


def caching_against_similarity(profile: Profile) -> Figure | None:
    """Quality of each AC level by similarity; None without the data."""
    similarity = profile.similarity()
    if similarity is None or "AC" not in profile.strategies or not np.isfinite(similarity).all():
        return None
    rungs = [v for v in profile.ladder("AC") if profile.variants[v].skipped_steps]
    return _caching(profile, rungs, np.asarray(similarity)) if rungs else None


def save_figures(folder: Path, profile: Profile, tolerance: float) -> list[Path]:
    """Every figure as PNG and SVG."""
    return [file for p in pictures(profile, tolerance) for file in save(p.figure, folder, p.name)]
