"""How our figures look, and how they become files: the same figure is the same bytes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from argus_sim.files import write_atomically
from argus_sim.report.policy_style import DASHED, STYLES, styles

__all__ = [
    "DASHED",
    "INK",
    "STYLES",
    "embed",
    "head",
    "label_points",
    "legend",
    "render",
    "save",
    "styled",
    "styles",
]

Floats = npt.NDArray[np.float64]

#: Of texts and marks.
INK = "#444444"

P = ParamSpec("P")

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # Ships with Matplotlib, so that bytes do not depend on the system's fonts.
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 1.5,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "text.parse_math": False,  # A name is a name, even one with dollars in it.
    "svg.hashsalt": "argus-sim",
    "svg.fonttype": "path",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under our settings, whatever the caller's are, and leave theirs as they were.

    The layout is solved once and kept: solved anew at every rendering, it would drift by a fraction of a point.
    """

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", _RC]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return wrapper


def render(figure: Figure, kind: Literal["png", "svg"], *, dpi: int = 150) -> bytes:
    """The figure as a file's bytes; the same figure gives the same bytes (no date, no random ids)."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.style.context(["default", _RC]):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def embed(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure for a page: SVG, or PNG where that is smaller."""
    return min(render(figure, "svg"), render(figure, "png", dpi=dpi), key=len)


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes ``<name>.png`` (150 dpi) and ``<name>.svg`` into the folder, each as a whole or not at all."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    write_atomically(png, render(figure, "png"))
    write_atomically(svg, render(figure, "svg"))
    return png, svg


def head(figure: Figure, title: str, note: str) -> None:
    """Title and, smaller under it, what a reader must know to read the figure; both reserve their room."""
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    height = float(figure.get_size_inches()[1])
    figure.text(0.01, 1 - 0.36 / height, note, color="#555555", fontsize=8.5, va="center")


def legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        columns = min(6, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.8)


def label_points(ax: Axes, names: Sequence[str], x: Floats, y: Floats, fontsize: float = 8) -> None:
    """Names beside their points, pushed apart where they would lie on each other."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    gap, reach = 0.055 * (high - low), 0.25 * (right - left)
    order = np.argsort(y, kind="stable")
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if abs(x[a] - x[b]) < reach]
    at = y.copy()
    for _ in range(100):
        for below, above in pairs:
            overlap = max(0.0, gap - (at[above] - at[below])) / 2
            at[below], at[above] = at[below] - overlap, at[above] + overlap
        at = np.clip(at, low + gap / 2, high - gap / 2)
    for row, label_y in enumerate(at):
        ax.annotate(
            names[row],
            (x[row], y[row]),
            xytext=(x[row] + 0.06 * (right - left), label_y),
            fontsize=fontsize,
            color=INK,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )
