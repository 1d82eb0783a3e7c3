"""Progress in text: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import warnings

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from torch import Tensor

from gdfq.runs.console import is_live, print_line
from gdfq.training import GDFQTrainer
from gdfq.training.progress import LayerProgress, Progress


def phase_of(trainer: GDFQTrainer) -> str:
    """Return the phase that the last step belonged to."""
    return "warm-up" if trainer.steps_done <= trainer.training.warmup_steps else "fine-tuning"


def losses_text(losses: dict[str, Tensor] | dict[str, float]) -> str:
    """Return the losses as text."""
    shown = {"generator": "generator", "bns": "BNS", "student": "student"}
    return "  ".join(
        f"{label} {float(losses[key]):.3f}" for key, label in shown.items() if key in losses
    )


def _warn(console: Console, text: str) -> None:
    print_line(console, f"warning: {text}", "yellow")


class Rate:
    """Images per second of training alone."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.last = time.perf_counter()

    def restart(self) -> None:
        """Leave out the time until now."""
        self.last = time.perf_counter()

    def step(self, images: int) -> float:
        """Return the rate after a step of so many images."""
        now = time.perf_counter()
        # An exponential average, so that the rate follows a change of phase.
        self.images = int(0.9 * self.images) + images
        self.seconds = 0.9 * self.seconds + now - self.last
        self.last = now
        return self.images / self.seconds


# Losses are read from the device, for which it must finish: not at every step.
SECONDS_BETWEEN_LOSSES = 0.5


class LiveProgress(LayerProgress):
    """A bar with phase, losses, images per second and the time left."""

    def __init__(self, console: Console) -> None:
        self.progress = Bars(
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar_width=20)] if console.width >= 120 else []),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TextColumn("{task.fields[losses]}", markup=False),
            console=console,
        )
        self.rate = Rate()
        self.read = 0.0

    def on_start(self, trainer: GDFQTrainer) -> None:
        """Show how steps are run, and the bar."""
        print_line(self.progress.console, trainer.describe(), "dim")
        steps = trainer.training.steps
        self.task = self.progress.add_task(
            "warm-up", total=steps, completed=trainer.steps_done, losses="", rate=""
        )
        self.progress.start()
        self.rate.restart()

    def on_status(self, text: str) -> None:
        """Print it above the bar."""
        print_line(self.progress.console, text, "dim")

    def on_warning(self, text: str) -> None:
        """Show it above the bar."""
        _warn(self.progress.console, text)

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Move the bar."""
        rate = self.rate.step(trainer.training.batch_size)
        now = time.perf_counter()
        if now - self.read >= SECONDS_BETWEEN_LOSSES:
            self.read = now
            self.progress.update(self.task, losses=losses_text(losses))
        self.progress.update(
            self.task, advance=1, description=phase_of(trainer), rate=f"{rate:.0f} images/s"
        )

    def on_layers(self, count: int) -> None:
        """Show the bar of the layers."""
        self.task = self.progress.add_task("measuring", total=count, losses="", rate="")
        self.progress.start()

    def on_layer(self, name: str) -> None:
        """Move that bar."""
        self.progress.update(self.task, advance=1, rate=name)

    def on_stop(self) -> None:
        """Leave the bar where it is."""
        self.progress.stop()


class PlainProgress(LayerProgress):
    """One line per epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rate = Rate()
        self.images_per_second = 0.0

    def on_start(self, trainer: GDFQTrainer) -> None:
        """Print how steps are run; start the clock."""
        print_line(self.console, trainer.describe())
        self.rate.restart()

    def on_status(self, text: str) -> None:
        """Print it."""
        print_line(self.console, text)

    def on_warning(self, text: str) -> None:
        """Print it."""
        _warn(self.console, text)

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Take the time."""
        self.images_per_second = self.rate.step(trainer.training.batch_size)

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """Print the line."""
        training = trainer.training
        epoch = trainer.steps_done // training.steps_per_epoch
        left = (training.steps - trainer.steps_done) * training.batch_size
        print_line(
            self.console,
            f"epoch {epoch}/{training.epochs}  {phase_of(trainer)}  {losses_text(losses)}  "
            f"{self.images_per_second:.0f} images/s  {left / self.images_per_second:.0f} s left",
        )

    def on_layers(self, count: int) -> None:
        """Count down the layers from here."""
        self.layers_left = count

    def on_layer(self, name: str) -> None:
        """Print the line."""
        self.layers_left -= 1
        print_line(self.console, f"measured {name}  {self.layers_left} layers left")


def console_progress(console: Console, live: bool = True) -> LiveProgress | PlainProgress:
    """Return a live display if ``console`` is a terminal, else one in plain lines."""
    return LiveProgress(console) if live and is_live(console) else PlainProgress(console)


class SilentProgress(Progress):
    """Shows nothing; warnings are Python's."""

    def on_warning(self, text: str) -> None:
        """Warn."""
        warnings.warn(f"gdfq: {text}", stacklevel=2)
