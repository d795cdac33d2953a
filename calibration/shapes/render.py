"""Pictures of captions, and the exact check of a picture against a caption.

A picture is 32 x 32 px: shapes of 5 px (small) or 9 px (large) on near-black, in the cells of a 3 x 3 grid whose
pitch is 11 px. The group stands in the middle (a group of two columns or rows in the first two); one pixel of
jitter and sizes that are left open come from the seed.

:func:`check` looks at pixels only (colour, connected components, best overlap with a template), so it can judge
what a model has drawn without any learned scorer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from calibration.shapes.captions import COLOURS, GRID, RELATIONS, SHAPES, SIZES, Caption, Item

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

RESOLUTION: Final = 32
PITCH: Final = 11
FIRST_CENTRE: Final = 5
EXTENT: Final = {"small": 5, "large": 9}
BACKGROUND: Final = (18, 18, 22)
PALETTE: Final[dict[str, tuple[int, int, int]]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (200, 50, 220),
    "cyan": (40, 210, 220),
    "white": (240, 240, 240),
}
_FINE: Final = 8  # samples per pixel and axis


@cache
def template(shape: str, size: str) -> Floats:
    """Coverage of each pixel, 9 x 9, the shape in the middle."""
    box, extent = EXTENT["large"], EXTENT[size]
    at = (np.arange(box * _FINE) + 0.5) / _FINE - box / 2
    x, y = np.meshgrid(at / (extent / 2), at / (extent / 2))  # the shape spans [-1, 1]
    inside = {
        "circle": x * x + y * y <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 1,
        "triangle": (y <= 1) & (y >= 2 * abs(x) - 1),
        "cross": (np.minimum(abs(x), abs(y)) <= 0.34) & (np.maximum(abs(x), abs(y)) <= 1),
    }[shape]
    return inside.reshape(box, _FINE, box, _FINE).mean(axis=(1, 3)).astype(np.float32)


def place(caption: Caption, rng: np.random.Generator) -> list[tuple[tuple[int, int], Item]]:
    """The place in the grid of every item, and a size where it is left open."""
    cells = caption.cells
    left, top = ((GRID - 1 - max(cell[axis] for cell in cells)) // 2 for axis in (0, 1))
    return [
        ((x + left, y + top), Item(item.size or SIZES[int(rng.random() * 2)], item.colour, item.shape))
        for (x, y), item in zip(cells, caption.items, strict=True)
    ]


def paint(scene: list[tuple[tuple[int, int], Item]], jitter: tuple[int, int] = (0, 0)) -> Pixels:
    """uint8[32, 32, 3]; `jitter` moves the whole scene by -1 or 0 pixels to the right and down."""
    canvas = np.broadcast_to(np.array(BACKGROUND, np.float32), (RESOLUTION, RESOLUTION, 3)).copy()
    reach = EXTENT["large"] // 2
    for (column, row), item in scene:
        cover = template(item.shape, item.size or "large")[:, :, None]
        x = FIRST_CENTRE + PITCH * column + jitter[0] - reach
        y = FIRST_CENTRE + PITCH * row + jitter[1] - reach
        patch = canvas[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        patch += cover * (np.array(PALETTE[item.colour], np.float32) - patch)
    return np.rint(canvas).astype(np.uint8)


def render(caption: Caption, seed: int) -> Pixels:
    """A picture of the caption, uint8[32, 32, 3]: the same seed gives the same bytes."""
    rng = np.random.Generator(np.random.PCG64(seed))
    scene = place(caption, rng)
    return paint(scene, (-int(rng.random() * 2), -int(rng.random() * 2)))


@dataclass(frozen=True, slots=True)
class Seen:
    """A shape that was found in a picture: its middle in pixels and what it looks like."""

    x: float
    y: float
    size: str
    colour: str
    shape: str


@cache
def _templates() -> list[tuple[str, str, Floats]]:
    return [(shape, size, template(shape, size)) for shape in SHAPES for size in SIZES]


def detect(image: Pixels) -> list[Seen]:
    """Every connected patch of one palette hue of at least 6 px, read as the template it overlaps best."""
    ink = np.array([PALETTE[colour] for colour in COLOURS], np.float32) - BACKGROUND
    pixels = np.maximum(image.astype(np.float32) - BACKGROUND, 0)
    bright = pixels.max(-1)
    hues = pixels / np.maximum(bright, 1)[:, :, None]  # an edge has the hue, but is less bright
    likest = ((hues[:, :, None] - ink / ink.max(-1, keepdims=True)) ** 2).sum(-1).argmin(-1)
    nearest = np.where(bright >= 0.5 * ink.max(-1)[likest], likest + 1, 0)
    found: list[Seen] = []
    reach = EXTENT["large"] // 2
    for index, colour in enumerate(COLOURS, start=1):
        blobs, count = ndimage.label(nearest == index, structure=np.ones((3, 3)))
        for blob in range(1, count + 1):
            mask = blobs == blob
            if mask.sum() < 6:
                continue
            rows, columns = np.nonzero(mask)
            y, x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
            near = ndimage.binary_dilation(mask) & ((nearest == index) | (nearest == 0))  # half-covered edges
            padded = np.pad(near * np.minimum(bright / ink[index - 1].max(), 1), 2 * reach)
            best, name = -1.0, ("small", "circle")
            for dy, dx in itertools.product((0, 1), repeat=2):  # an even extent has two middles
                top, left = int(y + dy / 2) + reach, int(x + dx / 2) + reach
                window = padded[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
                for shape, size, cover in _templates():
                    both = np.minimum(window, cover).sum()
                    overlap = both / (window.sum() + cover.sum() - both)
                    if overlap > best:
                        best, name = float(overlap), (size, shape)
            found.append(Seen(float(x), float(y), name[0], colour, name[1]))
    return found


def check(image: Pixels, caption: Caption) -> tuple[bool, float]:
    """Whether the picture shows the caption, and the share of its facts that hold.

    Facts: the number of shapes; of each item its presence, colour, shape and (if said) size; each relation. The
    items are matched to what was found so that most facts hold.
    """
    seen: list[Seen | None] = [*detect(image)][:7]
    items = caption.items
    number_right = len(seen) == len(items)
    facts = 1 + sum(3 + (item.size is not None) for item in items) + len(caption.relations)
    seen += [None] * max(0, len(items) - len(seen))
    best = 0
    for matched in set(itertools.permutations(range(len(seen)), len(items))):
        shapes = [seen[i] for i in matched]
        held = sum(_facts(item, shape) for item, shape in zip(items, shapes, strict=True))
        held += sum(
            _stands(one, two, relation)
            for one, two, relation in zip(shapes, shapes[1:], caption.relations, strict=False)
        )
        best = max(best, held)
    score = (best + number_right) / facts
    return best + number_right == facts, score


def _facts(item: Item, seen: Seen | None) -> int:
    if seen is None:
        return 0
    return 1 + (seen.colour == item.colour) + (seen.shape == item.shape) + (item.size == seen.size)


def _stands(one: Seen | None, two: Seen | None, relation: str) -> bool:
    if one is None or two is None:
        return False
    dx, dy = RELATIONS[relation]
    off_x, off_y = two.x - one.x - PITCH * dx, two.y - one.y - PITCH * dy
    return abs(off_x) <= PITCH / 2 and abs(off_y) <= PITCH / 2
