"""A seeded grammar of text-to-image prompts, from a lone object to a crowded scene.

Synthetic profiles need prompts whose text tells how hard they are, in the ways that are known to be hard for
text-to-image models: several objects, attributes bound to objects, spatial relations, counts, written words
and negation (the skills that GenAI-Bench, T2I-CompBench and GenEval test), under the clutter of style words
that real users add. Six classes of difficulty are drawn equally often; class c asks for about 2c such things.

The prompts are made up: they carry no statistic of any real log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

CLASSES: Final = 6

#: place -> (things that are found there as singular/plural, where exactly)
_SETTINGS: Final = (
    (
        "cat/cats, teapot/teapots, candle/candles, violin/violins, typewriter/typewriters, globe/globes,"
        " armchair/armchairs, bookshelf/bookshelves, clock/clocks, vase/vases, lamp/lamps, mirror/mirrors,"
        " chessboard/chessboards, sewing machine/sewing machines, birdcage/birdcages, suitcase/suitcases",
        "in a cluttered attic, in a sunlit library, on a kitchen table, in an old workshop, in a studio",
    ),
    (
        "fox/foxes, lighthouse/lighthouses, bicycle/bicycles, heron/herons, windmill/windmills, horse/horses,"
        " rowing boat/rowing boats, oak tree/oak trees, stone bridge/stone bridges, owl/owls, wolf/wolves,"
        " hot-air balloon/hot-air balloons, sailing ship/sailing ships, scarecrow/scarecrows, tent/tents",
        "in a misty valley, by a frozen lake, on a rocky shore, in a field of poppies, near a forest",
    ),
    (
        "robot/robots, street musician/street musicians, tram/trams, vintage car/vintage cars, dog/dogs,"
        " pigeon/pigeons, umbrella/umbrellas, food stall/food stalls, scooter/scooters, taxi/taxis,"
        " street lamp/street lamps, skateboard/skateboards, fountain/fountains, news stand/news stands",
        "in a narrow alley, on a rainy boulevard, at a night market, in front of a cinema, on a busy square",
    ),
)
_COLOURS: Final = "red, emerald green, pale blue, black, white, golden, violet, orange, turquoise"
_MATERIALS: Final = (
    "wooden, glass, rusty, porcelain, knitted, brass, paper, striped, furry, tiny, giant, inflatable"
)
_RELATIONS: Final = (
    "to the left of, to the right of, on top of, underneath, behind, in front of, next to, leaning against"
)
_NUMBERS: Final = "two, three, four, five, six, seven"
_WORDS: Final = "OPEN, NO EXIT, HOPE, 1984, CAFE LUNA, GO SLOW, FRESH BREAD, LOST, TICKETS, WELCOME"
_CARRIERS: Final = "a sign reading, a banner that says, a label with the words, graffiti spelling"
_ABSENT: Final = "people, clouds, shadows, leaves, cars, furniture, water, windows"
_NEGATIONS: Final = "without any {}, but no {}, with no {} in sight"
_TIMES: Final = "at dawn, at dusk, under a starry sky, in heavy snow, in the rain, in fog"
_STYLES: Final = (
    "oil painting, watercolour, 35mm photograph, isometric render, pencil sketch, low-poly render, pixel art,"
    " woodblock print, art nouveau poster, macro photograph, claymation still, comic panel"
)
_CLUTTER: Final = (
    "highly detailed, sharp focus, cinematic lighting, 8k, volumetric light, trending on artstation, bokeh,"
    " intricate, masterpiece, soft shadows, wide angle, muted colours, golden hour, award-winning, film grain"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and what is hard about it.

    Attributes:
        text: The prompt.
        complexity_class: The class it was drawn from, 1 (easiest) to 6.
        objects: How many kinds of things it names.
        attributes: Colours and materials bound to them.
        relations: Spatial relations between them.
        counts: Things asked for in a number other than one.
        written_text: Pieces of text to be rendered.
        negations: Things that must not be there.
        clutter: Style words that ask for nothing that could be checked.
    """

    text: str
    complexity_class: int
    objects: int
    attributes: int
    relations: int
    counts: int
    written_text: int
    negations: int
    clutter: int

    @property
    def complexity(self) -> int:
        """Number of things that can go wrong: all features but clutter."""
        return self.objects + self.attributes + self.relations + self.counts + self.written_text + self.negations


def write_prompts(number: int, seed: int) -> list[Prompt]:
    """Write `number` distinct prompts, the classes 1..6 in turn (so every class is equally frequent).

    The same arguments give the same prompts on any platform.
    """
    dice = _Dice(seed)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    while len(prompts) < number:
        prompt = _write(len(prompts) % CLASSES + 1, dice)
        if prompt.text not in seen:
            seen.add(prompt.text)
            prompts.append(prompt)
    return prompts


class _Dice:
    """Choices from raw uniforms only: the part of a generator that stays stable between releases."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def below(self, n: int) -> int:
        return int(self._rng.random() * n)

    def chance(self, p: float) -> bool:
        return float(self._rng.random()) < p

    def pick(self, options: str) -> str:
        return self.sample(options, 1)[0]

    def sample(self, options: str, k: int) -> list[str]:
        """`k` different ones of comma-separated options."""
        pool = [option.strip() for option in options.split(",")]
        return [pool.pop(self.below(len(pool))) for _ in range(k)]


def _write(level: int, dice: _Dice) -> Prompt:
    things, places = _SETTINGS[dice.below(len(_SETTINGS))]
    fewest = (level + 1) // 2
    objects = fewest + dice.below(level // 2 + 2 - fewest)
    # What the objects leave of the class's budget is spent on features drawn without replacement.
    slots = [f"{kind}{i}" for i in range(objects) for kind in ("colour", "material", "number")]
    slots += [f"relation{i}" for i in range(1, objects)] + ["written", "negation"]
    budget = max(2 * level + dice.below(3) - 1 - objects, 0)
    drawn = set(dice.sample(",".join(slots), min(budget, len(slots))))

    text = ""
    for i, noun in enumerate(dice.sample(things, objects)):
        singular, plural = noun.split("/")
        words = [
            dice.pick(options)
            for kind, options in (("colour", _COLOURS), ("material", _MATERIALS))
            if f"{kind}{i}" in drawn
        ]
        if f"number{i}" in drawn:
            phrase = " ".join([dice.pick(_NUMBERS), *words, plural])
        else:
            head = " ".join([*words, singular])
            phrase = ("an " if head[0] in "aeio" else "a ") + head
        joint = dice.pick(_RELATIONS) if f"relation{i}" in drawn else "and"
        text = f"{text} {joint} {phrase}" if text else phrase
    text += f" {dice.pick(places)}"
    if dice.chance(0.4):
        text += f" {dice.pick(_TIMES)}"
    if "written" in drawn:
        text += f", with {dice.pick(_CARRIERS)} '{dice.pick(_WORDS)}'"
    if "negation" in drawn:
        text += f", {dice.pick(_NEGATIONS).format(dice.pick(_ABSENT))}"
    if dice.chance(0.7):
        style = dice.pick(_STYLES)
        text = f"{style} of {text}" if dice.chance(0.5) else f"{text}, {style}"
    clutter = dice.below(5)
    text = ", ".join([text, *dice.sample(_CLUTTER, clutter)])

    def count(*kinds: str) -> int:
        return sum(slot.startswith(kinds) for slot in drawn)

    return Prompt(
        text=text,
        complexity_class=level,
        objects=objects,
        attributes=count("colour", "material"),
        relations=count("relation"),
        counts=count("number"),
        written_text=count("written"),
        negations=count("negation"),
        clutter=clutter,
    )
