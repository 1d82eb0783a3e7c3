"""A training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Step = Callable[[], dict[str, Tensor]]
WARM_UP_STEPS = 3


class CapturedStep:
    """A step that, after a few ordinary runs, is captured and from then on replayed.

    Every call is one step: the ordinary ones, which let libraries choose their algorithms and
    optimizers make their state, count too, and so does the one after the capture, which itself
    computes nothing. The returned tensors are the graph's own: the next call overwrites them.

    Where capturing fails, the step runs uncaptured: a warning and ``failure`` say why. Nothing of
    a failed capture was computed, and ``rng`` is where it was before it.

    Args:
        step: reads and writes only tensors that stay in place, has no host reads, and draws
            random numbers from ``rng`` alone.
        rng: a generator of a CUDA device.

    Not run on a GPU so far: what can be checked without one (host reads, tensors of the host,
    random numbers, what a step leaves behind, when it is captured, the fallback) is, in
    ``tests/training/test_capture.py`` and ``tests/training/test_step_on_device.py``.
    """

    def __init__(self, step: Step, rng: torch.Generator) -> None:
        self.step = step
        self.rng = rng
        self.runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.losses: dict[str, Tensor] = {}
        self.failure: str | None = None

    def __call__(self) -> dict[str, Tensor]:
        """Do the step."""
        if self.graph is not None:
            self.graph.replay()
            return self.losses
        if self.failure is not None:
            return self.step()
        self.runs += 1
        if self.runs <= WARM_UP_STEPS:
            return self._aside()
        try:
            self.graph, self.losses = self._capture()
        except RuntimeError as error:
            # Ending a capture that has failed raises again, over the cause.
            cause = error.__context__ or error
            self.failure = (str(cause).splitlines() or [type(cause).__name__])[0]
            warnings.warn(
                f"capturing the step as a CUDA graph failed, it runs without one: {self.failure}",
                RuntimeWarning,
                stacklevel=2,
            )
        return self()

    def _aside(self) -> dict[str, Tensor]:
        """Run the step on a stream of its own, as capturing needs it beforehand."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.rng)
        stream = torch.cuda.current_stream()
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        try:
            with put_back_on_failure([self.rng, default]), torch.cuda.graph(graph):
                losses = self.step()
        finally:
            torch.cuda.set_stream(stream)  # which a failed capture leaves at its own
        return graph, losses


@contextmanager
def put_back_on_failure(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Restore the state of ``generators`` if the body, a capture, fails.

    PyTorch has every generator of a graph, the default one always, wait for the end of its capture;
    after one that failed they would refuse to draw ever again.
    """
    kept = [generator.clone_state() for generator in generators]
    try:
        yield
    except BaseException:
        for generator, state in zip(generators, kept, strict=True):
            generator.graphsafe_set_state(state)
        raise
