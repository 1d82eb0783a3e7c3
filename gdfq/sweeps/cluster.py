"""Run a sweep's runs as tasks of Ray, which finds machines and GPUs for them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gdfq.errors import InputError
from gdfq.memory import keep_freed_memory
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.options import Options
from gdfq.runs.progress import SilentProgress
from gdfq.sweeps.plan import PlannedRun
from gdfq.sweeps.running import Launcher, execute

# Runs that are stopped have this long for a step and a checkpoint.
STOP_SECONDS = 120.0


def over_ray(
    options: Options,
    gpus: float | None,
    cpus: float,
    notice: Callable[[], None],
    on_status: Callable[[str], None],
) -> Launcher:
    """Execute runs as tasks of the Ray cluster ``RAY_ADDRESS``, or of one on this machine.

    Their folders must be seen by all machines at the same path. A task whose machine is lost is
    done again by Ray, and resumes at the run's newest checkpoint.

    Args:
        options: of the runs.
        gpus: of each run; None is 1 where the cluster has any and ``options.device`` allows it.
        cpus: of each run; Ray lets it have as many threads.
        notice: called when a signal has arrived and the runs are stopping.
        on_status: called with lines about what is being done.

    Raises:
        InputError: Ray is not installed or does not start, or the cluster has no machine that a
            run fits on. What is returned raises Interrupted, when the runs have left checkpoints.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("ray: needs the package ray; pip install 'gdfq[sweep]'") from error
    if not ray.is_initialized():
        try:
            ray.init()
        except Exception as error:  # Ray has no class of its own for what can go wrong here
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"ray: cannot be reached or started: {reason}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        any_gpu = any(node.get("GPU", 0) for node in nodes)
        gpus = 1.0 if any_gpu and options.device != "cpu" else 0.0
    if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        most = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
        raise InputError(
            f"ray: no machine has the {cpus:g} CPUs and {gpus:g} GPUs that a run is to have; "
            f"there are {most}"
        )
    on_status(f"each run gets {cpus:g} CPUs and {gpus:g} GPUs of {len(nodes)} machines")
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus)

    def launch(runs: Sequence[PlannedRun], out: Path) -> Iterator[tuple[PlannedRun, str | None]]:
        interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, notice=notice)
        pending: dict[Any, PlannedRun] = {}
        try:
            with interrupts:
                pending = {task.remote(run, out, options): run for run in runs}
                while pending:
                    ready, _ = ray.wait(list(pending), timeout=0.5)
                    interrupts.check()
                    for reference in ready:
                        run = pending.pop(reference)
                        problem = _problem(ray, reference)
                        on_status(f"{len(runs) - len(pending)} of {len(runs)} are over: {run.name}")
                        yield run, problem
                        interrupts.check()
        finally:
            for reference in pending:
                ray.cancel(reference)  # a KeyboardInterrupt there, as by Ctrl-C
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=STOP_SECONDS)

    return launch


def _task(run: PlannedRun, out: Path, options: Options) -> str | None:
    keep_freed_memory()
    # By which Ray cancels a task; a command that was started by nohup passes on that it ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts = Interrupts(signal.SIGINT, kill=False)
        return execute(run, out, options, SilentProgress(), interrupts)
    except Interrupted:
        return "stopped"


def _problem(ray: Any, reference: Any) -> str | None:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # its machine is lost, for good
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
