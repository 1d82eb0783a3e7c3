"""Ctrl-C and SIGTERM: deferred to the end of a step, or raised at once if nothing is lost."""

from __future__ import annotations

import signal
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gdfq.distributed import World


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end, and everything has been saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Interrupts:
    """While entered, the first of ``signals`` is kept in ``arrived``, and a second one kills.

    With ``kill=False`` a second one does what it did before: it is the caller's process.

    :meth:`check` raises what has arrived, and within :meth:`at_once` it is raised when it does.
    Signals that the process was started to ignore stay ignored.

    Args:
        signals: which; none for a caller that has its own handlers.
        notice: called when one arrives that is kept.
        kill: whether a second one ends the process.
    """

    def __init__(
        self,
        *signals: signal.Signals,
        notice: Callable[[], None] = lambda: None,
        kill: bool = True,
    ) -> None:
        self.signals = signals
        self.notice = notice
        self.kill = kill
        self.arrived: int | None = None
        self._at_once = False
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        for signum in self.signals:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._handlers.clear()

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        for other, before in self._handlers.items():
            signal.signal(other, signal.SIG_DFL if self.kill else before)  # type: ignore[arg-type]
        self.arrived = signum
        if self._at_once:
            raise Interrupted(signum)
        self.notice()

    def agree(self, world: World) -> None:
        """Have a signal that arrived at any rank of ``world`` count on all; all must call it."""
        self.arrived = world.largest(self.arrived or 0) or None

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self.arrived is not None:
            raise Interrupted(self.arrived)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise signals as they arrive, within a block that may be left anywhere."""
        try:
            self._at_once = True
            self.check()
            yield
        finally:
            self._at_once = False
