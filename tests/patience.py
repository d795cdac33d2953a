"""How long tests wait."""

from __future__ import annotations

from typing import Final

#: What does not come within this never comes, however slow and busy the machine. Where all is well, nobody waits.
LONG_S: Final = 600.0
