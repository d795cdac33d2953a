"""Images that are kept while another one is made for the same request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from argus_sim.domain import VariantId


class _Kept(NamedTuple):
    """Of one request: its images with the judge's word on each, what ran for each, and the best of them."""

    images: tuple[tuple[VariantId, float], ...]
    ran: dict[VariantId, int]
    best: VariantId


class Gallery:
    """What a cascade has made and not yet given away, by request."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[int]:
        return iter(self._kept)

    def images(self, row: int) -> tuple[tuple[VariantId, float], ...]:
        """Variant and confidence of each image that a request has, in the order they were made."""
        kept = self._kept.get(row)
        return () if kept is None else kept.images

    def keep(self, row: int, variant: VariantId, confidence: float, ran: int, best: VariantId) -> None:
        """Keep another image.

        Args:
            row: The request.
            variant: What made the image.
            confidence: The judge's word.
            ran: Variant, worker and batch size, packed as in ``OutcomeLog``.
            best: Whose image the request gets if no other is made in time.

        Raises:
            KeyError: ``best`` has made none.
        """
        images, made, _ = self._kept.get(row, _Kept((), {}, variant))
        made = made | {variant: ran}
        if best not in made:
            raise KeyError(best)
        self._kept[row] = _Kept((*images, (variant, confidence)), made, best)

    def take(self, row: int, variant: VariantId | None = None) -> tuple[VariantId, int] | None:
        """Give away an image, the best by default, and forget the others.

        Returns:
            The variant and what ran; None where there is no such image, and then nothing is forgotten.
        """
        kept = self._kept.get(row)
        if kept is None:
            return None
        chosen = kept.best if variant is None else variant
        if chosen not in kept.ran:
            return None
        del self._kept[row]
        return chosen, kept.ran[chosen]

    def forget(self, row: int) -> None:
        """The request has another image."""
        self._kept.pop(row, None)
