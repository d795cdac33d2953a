"""``argus-calibrate report``: what a profile says, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from argus_sim.errors import InputError
from argus_sim.files import write_atomically
from argus_sim.profile import Profile
from argus_sim.report.plot_style import embed
from calibration.assemble import ABSENT
from calibration.figures import affinity_shares, pictures


def findings(profile: Profile, tolerance: float) -> list[str]:
    """Sentences: what a reader should take along."""
    out = []
    base = profile.variants[profile.base]
    fastest = min(range(len(profile.variants)), key=lambda v: profile.latency(v, 1).p50_s)
    ratio = profile.latency(profile.base, 1).p50_s / profile.latency(fastest, 1).p50_s
    out.append(f"{profile.variants[fastest].name} is {ratio:.3g} times as fast as the base, {base.name}.")
    if profile.manifest.metric == ABSENT:
        return [*out, "Quality was not measured: every score is 1 and means nothing."]
    quality = np.nanmean(profile.relative_quality(), axis=0)
    for strategy in profile.strategies:
        ladder = list(profile.ladder(strategy))
        shares = affinity_shares(profile, strategy, tolerance)
        falls = bool((np.diff(quality[ladder]) <= 1e-12).all())
        out.append(
            f"{strategy}: {100 * (1 - shares[0]):.0f} % of prompts lose at most {100 * tolerance:g} %,"
            f" {100 * shares[0]:.0f} % need the base; mean relative quality goes from {quality[ladder[0]]:.3f} to"
            f" {quality[ladder[-1]]:.3f}{'' if falls else ' (not at every level down)'}."
        )
    rested = [(v, *found) for v in range(len(profile.variants)) for found in profile.after_idle(v, 1)]
    for pause_s in sorted({idle_s for _, idle_s, _ in rested}):
        both = [(profile.latency(v, 1), after) for v, idle_s, after in rested if idle_s == pause_s]
        median, tail = (
            float(np.median([getattr(after, of) / getattr(usual, of) - 1.0 for usual, after in both]))
            for of in ("p50_s", "p99_s")
        )
        out.append(
            f"After {pause_s:g} s without work, an image takes {100 * median:+.1f} % in the median and"
            f" {100 * tail:+.1f} % at the 99th percentile, over one right after another."
        )
    similarity = profile.similarity()
    if similarity is not None and "AC" in profile.strategies:
        deepest = max(profile.ladder("AC"), key=lambda v: profile.variants[v].skipped_steps)
        change = profile.quality_relative_to_base()[:, deepest]
        both = np.isfinite(change) & np.isfinite(similarity)
        if both.sum() > 2 and np.ptp(similarity[both]) > 0 and np.ptp(change[both]) > 0:
            r = float(np.corrcoef(similarity[both], change[both])[0, 1])
            out.append(
                "Correlation of the cached prompt's similarity with the quality that"
                f" {profile.variants[deepest].name} keeps: {r:.2f}."
            )
    return out


def write_html(path: Path, profile: Profile, tolerance: float) -> None:
    """One file with everything in it. Raises InputError for a tolerance that is none."""
    if not 0.0 <= tolerance < 1.0:
        raise InputError(f"must be in [0, 1), not {tolerance}", where="--tolerance")
    manifest = profile.manifest
    parts = [f"<h1>{_e(profile.name)}</h1>", f"<p>{_e(manifest.description)}</p>"]
    parts.append("<ul>" + "".join(f"<li>{_e(line)}</li>" for line in findings(profile, tolerance)) + "</ul>")
    for picture in pictures(profile, tolerance):
        image = embed(picture.figure)
        kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
        data = base64.b64encode(image).decode("ascii")
        lead, _, rest = picture.caption.partition(". ")
        parts.append(
            f'<figure><img alt="{_e(picture.caption)}" src="data:image/{kind};base64,{data}">'
            f"<figcaption><strong>{_e(lead)}.</strong> {_e(rest)}</figcaption></figure>"
        )
    parts += ["<h2>Variants</h2>", _table(*_variant_rows(profile))]
    if rows := _skipping_rows(profile):
        parts += ["<h2>Approximate caching: latency predicted from parts, and measured</h2>"]
        parts.append(_table(("variant", "predicted s", "measured s", "predicted / measured"), rows))
    origin = [
        (table, part.kind, part.source, part.derived or "") for table in profile.tables
        for part in profile.provenance_of(table)
    ]  # fmt: skip
    parts += ["<h2>Where the numbers come from</h2>", _table(("table", "kind", "source", "how"), origin)]
    facts = [("device", manifest.gpu), ("driver", manifest.driver or ""), ("dtype", manifest.dtype or "")]
    facts += [(name, version) for name, version in manifest.libraries.items()]
    parts += ["<h2>Machine and software</h2>", _table(("what", "which"), facts)]
    for key, title in (("notes", "Notes"), ("left_out", "Left out")):
        lines = manifest.generator.get(key)
        if isinstance(lines, list) and lines:
            parts += [f"<h2>{title}</h2>", "<ul>" + "".join(f"<li>{_e(str(x))}</li>" for x in lines) + "</ul>"]
    page = _PAGE.replace("{title}", _e(profile.name)).replace("{body}", "\n".join(parts))
    write_atomically(path, page.encode())


def _variant_rows(profile: Profile) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headings = (
        "variant",
        "strategy",
        "level",
        "steps",
        "skipped",
        "median s",
        "best images/s",
        "memory MB",
        "rel. quality",
    )
    quality = np.nanmean(profile.relative_quality(), axis=0)
    rows: list[tuple[str, ...]] = []
    for v, variant in enumerate(profile.variants):
        best = max(b / profile.latency(v, b).p50_s for b in profile.batch_sizes(v))
        memory = "" if variant.memory_bytes is None else f"{variant.memory_bytes / 1e6:.4g}"
        rows.append(
            (
                variant.name, variant.strategy, str(variant.level), str(variant.steps),
                str(variant.skipped_steps), f"{profile.latency(v, 1).p50_s:.4g}", f"{best:.4g}", memory,
                f"{quality[v]:.4f}",
            )
        )  # fmt: skip
    return headings, rows


def _skipping_rows(profile: Profile) -> list[tuple[str, ...]]:
    made: Any = profile.manifest.generator
    rows = []
    for model in (m for part in made.get("merged", [made]) for m in part.get("models", {}).values()):
        for name, values in model.get("skipping_predicted", {}).items():
            numbers = [f"{values[key]:.4g}" for key in ("predicted_s", "measured_s", "ratio")]
            if (share := values.get("half_width")) is not None:  # of few rounds, or an old profile: unknown
                numbers[-1] += f" ± {share * values['ratio']:.2g}"
            rows.append((name, *numbers))
    return rows


def _table(headings: tuple[str, ...], rows: list[Any]) -> str:
    top = "".join(f'<th scope="col">{_e(h)}</th>' for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{_e(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


_e: Callable[[str], str] = html.escape

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title} · argus-calibrate</title>
<style>
:root { --page: #fff; --ink: #1c2128; --soft: #57606a; --line: #d8dee4; --panel: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e4e8ec; --soft: #9aa5b1; --line: #343c45; --panel: #1d232a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, ul { max-width: 62rem; } figure { margin: 1.6rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
border-radius: 8px; } figcaption { margin-top: .5rem; color: var(--soft); font-size: .92rem; max-width: 62rem; }
figcaption strong { color: var(--ink); } .scroll { overflow-x: auto; border: 1px solid var(--line); border-radius:
8px; } table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: left; border-top: 1px solid var(--line); } thead th { border-top: 0;
background: var(--panel); color: var(--soft); } </style> </head> <body> {body} </body> </html>
"""
