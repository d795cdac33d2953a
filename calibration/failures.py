"""What an error says: in one line, and whether it says that memory has ended."""

from __future__ import annotations

from typing import Final

from argus_sim.errors import InputError

#: How the device's libraries say it, in lower case. The last is cuDNN, for want of a workspace.
_FULL: Final = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine",
)


def first_line(error: BaseException) -> str:
    """The first line of what it says, or its name where it says nothing."""
    text = error.message if isinstance(error, InputError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0][:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device or the host has no memory left."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _FULL)


def is_of_the_host(error: BaseException) -> bool:
    """Whether the memory that has ended is the host's."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error).lower()
