"""``argus-sim watch URL``: the dashboard of a live server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from argus_sim.live.look import Look

#: Looks kept: as many as the line of violations has characters.
_KEPT = 40


def watch_server(url: str, every_s: float, *, once: bool, as_json: bool, quiet: bool) -> None:
    """Show a server until it ends or the user has seen enough; once where nobody watches.

    Raises:
        InputError: No server answers there, or it is none of ours.
    """
    from rich.console import Console
    from rich.live import Live

    try:
        from argus_sim.live.look import Gone, look
    except ImportError as error:
        raise InputError(
            f"watching a server needs the packages of the live extra, and {error.name!r} is missing: "
            "pip install 'argus-sim[live]'"
        ) from None

    looks = [look(url)]
    if as_json:
        output.show_json(as_plain(url, looks[0]))
        return
    console = Console(highlight=False)
    if once or not console.is_terminal:
        output.show(dashboard(url, looks))
        return
    output.remark("Ctrl-C stops watching, not the server", quiet=quiet)
    try:
        with Live(dashboard(url, looks), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                try:
                    looks = [*looks[-_KEPT:], look(url)]
                except Gone:
                    live.update(dashboard(url, looks, ended=True), refresh=True)
                    return
                live.update(dashboard(url, looks), refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def as_plain(url: str, now: Look) -> dict[str, Any]:
    """A look as JSON has it."""
    return {
        "server": url,
        "answered": now.answered,
        "violations": now.violations,
        "slo_violation_ratio": now.violated / now.answered if now.answered else None,
        "latency_p50_s": now.latency_s(0.5),
        "latency_p99_s": now.latency_s(0.99),
        "workers": now.workers,
        "waiting": sum(now.waiting.values()),
        "model_loads": now.loads,
        "cache": {"hits": now.hits, "misses": now.misses},
        "variants": {
            variant: {
                "images": now.images[variant],
                "waiting": now.waiting[variant],
                "latency_p50_s": now.latency_s(0.5, variant),
                "latency_p99_s": now.latency_s(0.99, variant),
            }
            for variant in now.waiting
        },
    }


def dashboard(url: str, looks: Sequence[Look], *, ended: bool = False) -> RenderableType:
    """A server's state, from the last look; rates and the line of violations from those before it."""
    from rich.console import Group
    from rich.text import Text

    now = looks[-1]
    workers = ", ".join(f"{number} {status}" for status, number in now.workers.items() if number)
    state = "has ended" if ended else "serving"
    violated = f"{100 * now.violated / now.answered:.2f} %" if now.answered else "none"
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in now.violations.items() if number)
    lookups = now.hits + now.misses
    lines = [
        Text.assemble((url, "bold"), f"  {state}, workers: {workers or 'none'}"),
        Text(f"{now.answered:,} requests answered, {sum(now.waiting.values()):,} wait"),
        Text(f"SLO violations: {violated}{f' ({kinds})' if kinds else ''}"),
        Text(
            f"model loads: {now.loads:,}; cache: "
            + (f"{100 * now.hits / lookups:.1f} % of {lookups:,} look-ups hit" if lookups else "not asked")
        ),
    ]
    if len(looks) > 1:
        lines.append(Text.assemble("violations, look by look: ", (_course(looks), "red")))
    return Group(*lines, Text(""), _variants(looks))


def _variants(looks: Sequence[Look]) -> RenderableType:
    now, before = looks[-1], looks[-2] if len(looks) > 1 else None
    total = sum(now.images.values())
    rows = []
    for variant, images in now.images.items():
        rate = ""
        if before is not None and now.at_s > before.at_s:
            rate = f"{60 * (images - before.images.get(variant, 0)) / (now.at_s - before.at_s):,.0f}"
        share = f"{100 * images / total:.1f}" if total else ""
        times = [now.latency_s(part, variant) if images else float("nan") for part in (0.5, 0.99)]
        cells = [f"{images:,}", share, rate, f"{now.waiting[variant]:,}", *map(_seconds, times)]
        rows.append([variant, *cells])
    headings = ("variant", "images", "share\n%", "now\n/min", "wait", "p50\ns", "p99\ns")
    return output.grid(headings, rows)


def _seconds(value: float) -> str:
    if value != value:
        return ""
    return "long" if value == float("inf") else f"{value:.1f}"


def _course(looks: Sequence[Look]) -> str:
    import pandas as pd

    from argus_sim.cli.inspect import sparkline

    pairs = list(pairwise(looks))
    arrived = [max(0, b.answered - a.answered) for a, b in pairs]
    missed = [max(0, b.violated - a.violated) for a, b in pairs]
    on_time = [all_ - bad for all_, bad in zip(arrived, missed, strict=True)]
    return sparkline(pd.DataFrame({"arrived": arrived, "on_time": on_time}))
