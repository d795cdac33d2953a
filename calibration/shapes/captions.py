"""The grammar of the shapes zoo: one to five coloured shapes in a chain of spatial relations.

    caption  = item (relation item)*          one to five items
    item     = "a" [size] colour shape
    relation = "left of" | "right of" | "above" | "below"

A relation ties neighbours of the chain: in "a red circle left of a blue square above a white cross" the circle
is directly left of the square, and the square directly above the cross. The items stand in the cells of a 3 x 3
grid, so only chains that fit it without visiting a cell twice are captions. Where a size is not said, any will
do. The complexity class of a caption is its number of items.

>>> caption = parse("a small red circle left of a blue square")
>>> caption.complexity_class, caption.items[1].size, str(caption)
(2, None, 'a small red circle left of a blue square')
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from argus_sim.errors import InputError

GRID: Final = 3
MAX_ITEMS: Final = 5
SIZES: Final = ("small", "large")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
SHAPES: Final = ("circle", "square", "triangle", "cross")
#: relation -> the step in cells (x to the right, y down) from an item to the next one
RELATIONS: Final[dict[str, tuple[int, int]]] = {
    "left of": (1, 0),
    "right of": (-1, 0),
    "above": (0, 1),
    "below": (0, -1),
}
OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_ITEM = re.compile(rf"a (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")


@dataclass(frozen=True, slots=True)
class Item:
    """One shape. A size of None leaves it open."""

    size: str | None
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(["a", *([self.size] if self.size else []), self.colour, self.shape])


@dataclass(frozen=True, slots=True)
class Caption:
    """A chain of items and the relations between neighbours (one fewer)."""

    items: tuple[Item, ...]
    relations: tuple[str, ...] = ()

    @property
    def complexity_class(self) -> int:
        return len(self.items)

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """Column and row of every item, moved so that the least of either is 0."""
        x, y, walk = 0, 0, [(0, 0)]
        for relation in self.relations:
            dx, dy = RELATIONS[relation]
            x, y = x + dx, y + dy
            walk.append((x, y))
        left, top = min(x for x, _ in walk), min(y for _, y in walk)
        return tuple((x - left, y - top) for x, y in walk)

    @property
    def fits(self) -> bool:
        """Whether the chain fits the grid and no two items share a cell."""
        cells = self.cells
        inside = all(x < GRID and y < GRID for x, y in cells)
        return inside and len(set(cells)) == len(cells) and 1 <= len(cells) <= MAX_ITEMS

    @property
    def scene(self) -> frozenset[tuple[tuple[int, int], Item]]:
        """What a picture must show, whatever the order it is told in."""
        return frozenset(zip(self.cells, self.items, strict=True))

    def __str__(self) -> str:
        parts = [str(self.items[0])]
        for relation, item in zip(self.relations, self.items[1:], strict=True):
            parts += [relation, str(item)]
        return " ".join(parts)


def parse(text: str) -> Caption:
    """Read a caption; every caption has exactly one reading.

    Raises:
        InputError: The text is not of the grammar, or its chain does not fit the grid.
    """
    items: list[Item] = []
    relations: list[str] = []
    at = 0
    while True:
        found = _ITEM.match(text, at)
        if found is None:
            raise InputError(f"not a shapes caption at {text[at:]!r}: expected 'a [size] colour shape'")
        items.append(Item(found[1], found[2], found[3]))
        at = found.end()
        if at == len(text):
            break
        link = _RELATION.match(text, at)
        if link is None:
            raise InputError(f"not a shapes caption at {text[at:]!r}: allowed are {', '.join(RELATIONS)}")
        relations.append(link[1])
        at = link.end()
    caption = Caption(tuple(items), tuple(relations))
    if not caption.fits:
        raise InputError(f"{text!r} does not fit a {GRID} x {GRID} grid, or names over {MAX_ITEMS} shapes")
    return caption


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.random() * len(options))]


def _other(options: tuple[str, ...], current: str, rng: np.random.Generator) -> str:
    return _pick(tuple(option for option in options if option != current), rng)


def draw_item(rng: np.random.Generator) -> Item:
    """An item; one in three leaves its size open."""
    size = _pick((*SIZES, ""), rng) or None
    return Item(size, _pick(COLOURS, rng), _pick(SHAPES, rng))


def draw(items: int, rng: np.random.Generator) -> Caption:
    """A caption with that many items, drawn from raw uniforms (stable between releases of NumPy)."""
    relations = tuple(RELATIONS)
    while True:
        chain = tuple(_pick(relations, rng) for _ in range(items - 1))
        caption = Caption(tuple(draw_item(rng) for _ in range(items)), chain)
        if caption.fits:
            return caption


def write_prompts(number: int, seed: int) -> list[Caption]:
    """Distinct captions, the classes 1..5 in turn; class 1 has 84, and a class that is used up is passed over."""
    rng = np.random.Generator(np.random.PCG64(seed))
    singles = len(COLOURS) * len(SHAPES) * (len(SIZES) + 1)
    prompts: list[Caption] = []
    seen: set[Caption] = set()
    turn = lone = 0
    while len(prompts) < number:
        items = turn % MAX_ITEMS + 1
        turn += 1
        if items == 1 and lone == singles:
            continue
        caption = draw(items, rng)
        while caption in seen:
            caption = draw(items, rng)
        lone += items == 1
        seen.add(caption)
        prompts.append(caption)
    return prompts


def negatives(caption: Caption, rng: np.random.Generator) -> Iterator[tuple[str, Caption]]:
    """Captions that are wrong for any picture of this one, by exactly one thing each: kind and caption.

    Kinds: colour, shape, size, relation, fewer, more, swapped (two items change places).
    """
    items, relations = caption.items, caption.relations
    at = int(rng.random() * len(items))
    item = items[at]

    def with_item(new: Item) -> Caption:
        return Caption((*items[:at], new, *items[at + 1 :]), relations)

    yield "colour", with_item(replace(item, colour=_other(COLOURS, item.colour, rng)))
    yield "shape", with_item(replace(item, shape=_other(SHAPES, item.shape, rng)))
    if item.size is not None:
        yield "size", with_item(replace(item, size=_other(SIZES, item.size, rng)))
    if relations:
        link = int(rng.random() * len(relations))
        turned = (*relations[:link], _other(tuple(RELATIONS), relations[link], rng), *relations[link + 1 :])
        wrong = Caption(items, turned)
        if wrong.fits and not compatible(wrong, caption):
            yield "relation", wrong
        yield "fewer", Caption(items[:-1], relations[:-1])
        one, two = items[link], items[link + 1]
        wrong = Caption((*items[:link], two, one, *items[link + 2 :]), relations)
        if not compatible(wrong, caption):
            yield "swapped", wrong
    if len(items) < MAX_ITEMS:
        wrong = Caption((*items, draw_item(rng)), (*relations, _pick(tuple(RELATIONS), rng)))
        if wrong.fits:
            yield "more", wrong


def compatible(one: Caption, other: Caption) -> bool:
    """Whether some picture shows both: the same cells, and items that differ at most by a size left open."""
    mine, its = dict(one.scene), dict(other.scene)
    return mine.keys() == its.keys() and all(
        (a.colour, a.shape) == (b.colour, b.shape) and (a.size is None or b.size is None or a.size == b.size)
        for a, b in ((mine[cell], its[cell]) for cell in mine)
    )
