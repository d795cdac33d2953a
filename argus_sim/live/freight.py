"""Files that go with messages, between a host and workers on machines that do not see its disk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from argus_sim.live.painter import Carried, Paint, Painted, write


async def pack(message: Any) -> Any:
    """The same with the latents that its images start from, where it is a batch.

    A file that cannot be read goes without content, which the worker finds unreadable as it would the file.
    """
    if not isinstance(message, Paint):
        return message
    files = {wish.start for wish in message.wishes if isinstance(wish.start, Path)}
    content = await asyncio.to_thread(_read, files) if files else {}
    wishes = tuple(
        replace(wish, start=Carried(wish.start, content[wish.start])) if isinstance(wish.start, Path) else wish
        for wish in message.wishes
    )
    return replace(message, wishes=wishes, carry=True)


async def unpack(message: Any) -> Any:
    """The same with the new latents on disk, where there are any."""
    if not isinstance(message, Painted) or not message.kept:
        return message
    return replace(message, kept=await asyncio.to_thread(_write, message.kept))


def _read(files: set[Path]) -> dict[Path, bytes]:
    content: dict[Path, bytes] = {}
    for file in files:
        try:
            content[file] = file.read_bytes()
        except OSError:
            content[file] = b""
    return content


def _write(kept: tuple[Path | Carried, ...]) -> tuple[Path | Carried, ...]:
    return tuple(c.file for c in kept if isinstance(c, Carried) and write(c.file, c.content))
