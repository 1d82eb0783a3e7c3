"""A sweep from its plan to its page, whatever comes between."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gdfq.errors import InputError
from gdfq.files import locked, write_file
from gdfq.runs.folder import read_json, write_json
from gdfq.runs.measures import StatusCallback
from gdfq.sweeps import criterion
from gdfq.sweeps.contents import Comparison, RunRow, Sweep
from gdfq.sweeps.page import render
from gdfq.sweeps.plan import Plan, PlannedRun
from gdfq.sweeps.running import Launcher, check_folders, row_of, write_recipe
from gdfq.sweeps.summary import summarize

FILE, PAGE, DATA, LOCK = "sweep.toml", "sweep.html", "sweep.json", ".lock"
OVER = ("finished", "failed")


def run_sweep(
    plan: Plan,
    out: Path,
    launch: Launcher,
    device: str,
    on_status: StatusCallback,
    on_warning: StatusCallback,
    ray: bool = False,
) -> Sweep:
    """Do the runs of ``plan`` that are not over yet, and leave everything about it in ``out``.

    A run that is over is kept, and one that was interrupted is resumed. ``sweep.html`` and
    ``sweep.json`` are written anew after each.

    Args:
        plan: the sweep.
        out: a folder: of this sweep, an empty one, or none yet.
        launch: executes runs, see :func:`gdfq.sweeps.running.one_after_another`.
        device: what students are compared on.
        on_status: called with lines about what is being done.
        on_warning: called with a line about each thing that went wrong.
        ray: whether ``launch`` executes runs at the same time.

    Raises:
        InputError: ``out`` cannot be used, or a run in it has another recipe than ``plan`` gives
            it.
        Interrupted: a signal arrived; the next call resumes the sweep.
    """
    _make(out)
    with locked(out / LOCK):
        check_folders(plan, out)
        write_file(out / FILE, plan.text.encode())
        sweep = _Sweep(plan, out, device, on_status, on_warning, ray)
        try:
            sweep.go(launch)
        finally:
            sweep.publish()
        return sweep.contents()


def _make(out: Path) -> None:
    try:
        if out.is_dir() and not (out / FILE).is_file() and any(
            path.name != LOCK for path in out.iterdir()
        ):  # fmt: skip
            raise InputError(f"out: {out} is not empty, and is no sweep's: it has no {FILE}")
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
    except OSError as error:
        raise InputError(f"out: cannot write to {out}: {error.strerror}") from error


class _Sweep:
    def __init__(
        self,
        plan: Plan,
        out: Path,
        device: str,
        on_status: StatusCallback,
        on_warning: StatusCallback,
        ray: bool,
    ) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.on_status, self.on_warning = on_status, on_warning
        self.problems: dict[str, str] = {}  # by run, what kept it from its end
        self.notes: dict[tuple[str, int], str] = {}
        earlier = read_json(out / DATA)
        self.ray = ray or bool(earlier.get("ray"))
        self.measured: dict[tuple[str, int], Comparison] = {}
        for stored in earlier.get("measured", []):
            found = Comparison(**stored)
            self.measured[found.group, found.seed] = found

    def go(self, launch: Launcher) -> None:
        """Do the runs; measure those of a seed and of the same bits when all of them are over."""
        todo = [run for run in self.plan.runs if self.row(run).status not in OVER]
        for run in todo:
            write_recipe(self.out, run)
        for name in self.plan.groups:
            for seed in self.plan.seeds:
                self.measure(name, seed)
        kept = len(self.plan.runs) - len(todo)
        if kept:
            self.on_status(f"{kept} of {len(self.plan.runs)} runs are over already")
        for run, problem in launch(todo, self.out.resolve()):
            if problem is not None:
                self.problems[run.name] = problem
                self.on_warning(f"{run.name}: {problem}")
            self.measure(run.variant.bits, run.seed)
            self.publish()

    def row(self, run: PlannedRun) -> RunRow:
        """Return what is known of a run."""
        return row_of(self.out, run, self.problems.get(run.name))

    def measure(self, group: str, seed: int) -> None:
        """Compare the students of ``seed`` on generated images, if that has not been done."""
        rows = [self.row(PlannedRun(variant, seed)) for variant in self.plan.groups[group]]
        folders = {row.variant: self.out / row.folder for row in rows if row.status == "finished"}
        known = self.measured.pop((group, seed), None)
        if not folders or any(row.status not in OVER for row in rows):
            return
        if known is None or known.students != criterion.students(folders):
            self.on_status(f"comparing the students of seed {seed}, {group}, on generated images")
            try:
                known = criterion.measure(folders, group, seed, self.device, self.on_warning)
            except Exception as error:  # of any network: the runs are there all the same
                self.notes[group, seed] = (
                    f"The students of seed {seed}, {group}, were not compared on generated images: "
                    f"{error}"
                )
                self.on_warning(self.notes[group, seed])
                return
        self.measured[group, seed] = known

    def contents(self) -> Sweep:
        """Return the sweep, finished or not."""
        rows = [self.row(run) for run in self.plan.runs]
        return summarize(
            self.plan, rows, list(self.measured.values()), self.ray, list(self.notes.values())
        )

    def publish(self) -> None:
        """Write page and data."""
        contents = self.contents()
        try:
            write_json(self.out / DATA, asdict(contents))
            write_file(self.out / PAGE, render(contents).encode())
        except OSError as error:
            self.on_warning(f"cannot write to {self.out}: {error.strerror}")
