"""How every network of the shapes zoo learns: one loop, one log, one record, and how long each stage takes."""

from __future__ import annotations

import csv
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from calibration.shapes import save
from calibration.shapes.captions import MAX_ITEMS

SEED: Final = 20240607
SCENES: Final = 24_000
CHECKPOINT: Final = 400


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast a stage learns, and how often it sees captions of one, two, ... five shapes."""

    steps: int
    batch: int
    rate: float
    mix: tuple[int, ...] = (1, 1, 1, 1, 1)


PLANS: Final[dict[str, Plan]] = {
    "vae": Plan(1000, 32, 2e-3),
    "text": Plan(1000, 64, 2e-3),
    "clip": Plan(2400, 64, 1e-3),
    "shapes-large": Plan(1600, 32, 1e-3),
    "shapes-large+": Plan(1600, 32, 1e-3),
    "shapes-large++": Plan(1200, 32, 1e-3),
    "shapes-medium": Plan(1400, 32, 1e-3),
    "shapes-medium+": Plan(1200, 32, 1e-3),
    "shapes-small": Plan(3000, 32, 1.5e-3, mix=(4, 3, 2, 1, 1)),
    "shapes-tiny": Plan(5000, 32, 2e-3, mix=(8, 4, 2, 1, 1)),
}


class Trainer:
    """AdamW with warm-up, a constant rate and a linear end; an average of the weights; losses into a CSV file."""

    def __init__(self, name: str, out: Path, modules: list[nn.Module], decay: float = 0.998) -> None:
        self.name, self.plan, self.folder = name, PLANS[name], out / "training"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.plan.rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.rng = torch.Generator().manual_seed(SEED + len(name))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Row numbers: endless shuffled passes over `size` scenes, or draws by the plan's mix of classes."""
        if len(set(self.plan.mix)) > 1:
            weights = torch.tensor(self.plan.mix, dtype=torch.float32).repeat(size // MAX_ITEMS + 1)[:size]
            while True:
                yield torch.multinomial(weights, self.plan.batch, generator=self.rng)
        while True:
            order = torch.randperm(size, generator=self.rng)
            yield from order[: size - size % self.plan.batch].view(-1, self.plan.batch)

    def rate(self, step: int) -> float:
        left = (self.plan.steps - step) / (0.3 * self.plan.steps)
        return self.plan.rate * min(1.0, (step + 1) / 100, max(left, 0.02))

    def run(self, loss_of: Callable[[Tensor], dict[str, Tensor]], size: int, keep: Callable[[], None]) -> None:
        """Minimise the sum of the losses; `keep` saves, and is called with the averaged weights in place."""
        start, sums, seen = time.monotonic(), dict[str, float](), 0
        with (self.folder / f"{self.name}.csv").open("w", newline="") as file:
            log = csv.writer(file)
            for step, rows in zip(range(self.plan.steps), self.batches(size), strict=False):
                for group in self.optimiser.param_groups:
                    group["lr"] = self.rate(step)
                losses = loss_of(rows)
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad()
                decay = min(self.decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
                sums = {key: sums.get(key, 0.0) + float(loss.detach()) for key, loss in losses.items()}
                seen += 1
                if (step + 1) % 50 == 0:
                    if step < 50:
                        log.writerow(["step", "seconds", *sums])
                    row = [round(total / seen, 5) for total in sums.values()]
                    log.writerow([step + 1, round(time.monotonic() - start, 1), *row])
                    file.flush()
                    print(
                        self.name, step + 1, f"{time.monotonic() - start:.0f}s", row, file=sys.stderr, flush=True
                    )
                    sums, seen = {}, 0
                if (step + 1) % CHECKPOINT == 0 or step + 1 == self.plan.steps:
                    self._keep(keep, step + 1, time.monotonic() - start)

    def _keep(self, keep: Callable[[], None], step: int, seconds: float) -> None:
        current = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_([p.data for p in self.parameters], self.average)
        keep()
        torch._foreach_copy_([p.data for p in self.parameters], current)
        facts = {
            "stage": self.name,
            "steps": step,
            "of_steps": self.plan.steps,
            "batch": self.plan.batch,
            "learning_rate": self.plan.rate,
            "average_decay": self.decay,
            "classes_mixed": list(self.plan.mix),
            "seed": SEED,
            "scenes": SCENES,
            "parameters": sum(p.numel() for p in self.parameters),
            "seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
            "versions": save.versions() | {"python": platform.python_version()},
        }
        (self.folder / f"{self.name}.json").write_text(json.dumps(facts, indent=2) + "\n")
