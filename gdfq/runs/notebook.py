"""Progress in a notebook: one output that is updated."""

from __future__ import annotations

import html
import time
from typing import Any

from torch import Tensor

from gdfq.report.text import duration
from gdfq.runs.progress import SECONDS_BETWEEN_LOSSES, Rate, losses_text, phase_of
from gdfq.training import GDFQTrainer
from gdfq.training.progress import Progress


def in_notebook() -> bool:
    """Whether what this process displays is shown in a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


class NotebookProgress(Progress):
    """A bar with phase, losses, images per second and the time left, and lines above it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bar = ""
        self.rate = Rate()
        self.shown = 0.0
        self.display: Any = None

    def on_start(self, trainer: GDFQTrainer) -> None:
        """Show how steps are run, and the bar."""
        self.on_status(trainer.describe())
        self._show_bar(trainer, "", 0.0)
        self.rate.restart()

    def on_status(self, text: str) -> None:
        """Show it above the bar."""
        self.lines.append(html.escape(text))
        self._write()

    def on_warning(self, text: str) -> None:
        """Show it above the bar."""
        self.lines.append(f"<b>warning:</b> {html.escape(text)}")
        self._write()

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """Move the bar, now and then."""
        rate = self.rate.step(trainer.training.batch_size)
        now = time.perf_counter()
        last = trainer.steps_done == trainer.training.steps
        if last or now - self.shown >= SECONDS_BETWEEN_LOSSES:
            self.shown = now
            self._show_bar(trainer, losses_text(losses), rate)

    def on_stop(self) -> None:
        """Leave the bar where it is."""
        self._write()

    def _show_bar(self, trainer: GDFQTrainer, losses: str, rate: float) -> None:
        done, steps = trainer.steps_done, trainer.training.steps
        parts = [phase_of(trainer), f"{done}/{steps} steps", losses]
        if rate:
            left = (steps - done) * trainer.training.batch_size / rate
            parts += [f"{rate:.0f} images/s", f"{duration(left)} left" if done < steps else ""]
        text = " &middot; ".join(html.escape(part) for part in parts if part)
        self.bar = f'<progress value="{done}" max="{steps}"></progress> {text}'
        self._write()

    def _write(self) -> None:
        from IPython.display import HTML, display

        lines = "".join(f"<div>{line}</div>" for line in [*self.lines, self.bar] if line)
        shown = HTML(f'<div class="gdfq-progress">{lines}</div>')
        if self.display is None:
            self.display = display(shown, display_id=True)
        else:
            self.display.update(shown)
