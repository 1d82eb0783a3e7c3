"""Measure memory over many steps of a small run: ``python -m benchmarks.flat_memory``.

The embedded network with a small generator and batch, run as by ``gdfq quantize``: freed memory
kept, metrics, a checkpoint every few seconds. Prints the process's resident memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from torch import Tensor

from gdfq.memory import keep_freed_memory
from gdfq.recipes import load_recipe
from gdfq.runs.progress import PlainProgress
from gdfq.runs.session import Options, quantize
from gdfq.training import GDFQTrainer

EVERY = 200


def resident() -> float:
    """Return this process's resident memory in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


class Memory(PlainProgress):
    """Print resident memory at intervals."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Record the time, and print the memory every few steps."""
        super().on_step(trainer, losses)
        if trainer.steps_done % EVERY == 0:
            print(f"step {trainer.steps_done}: {resident():.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    recipe = load_recipe("fashion-mnist-resnet20").with_options(
        {
            "data": "none", "width": 4, "latent_dim": 10, "batch_size": 4, "steps_per_epoch": 10,
            "epochs": given.steps // 10, "warmup_epochs": 5, "memory_format": "contiguous",
        }
    )  # fmt: skip
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        progress = Memory(Console(quiet=True))
        quantize(recipe, Path(folder) / "run", progress, Options(checkpoint_every=5))


if __name__ == "__main__":
    main()
