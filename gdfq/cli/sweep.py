"""``gdfq sweep``: a file of variants and seeds in, run folders and one table out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from gdfq.cli._common import (
    CHECKPOINT_EVERY,
    DEVICE,
    EXIT_FAILED,
    OPTIONS,
    REPORT,
    WORKERS,
    console,
    print_error,
    print_stopping,
    print_table,
    print_text,
    print_warning,
)
from gdfq.environment import resolve_device
from gdfq.errors import InputError
from gdfq.memory import keep_freed_memory
from gdfq.runs.interrupts import Interrupted
from gdfq.runs.options import Options
from gdfq.runs.progress import console_progress
from gdfq.runs.session import explain_end
from gdfq.sweeps.cluster import over_ray
from gdfq.sweeps.contents import Sweep
from gdfq.sweeps.page import difference, plus_minus, thousandths, two, won
from gdfq.sweeps.plan import read_plan
from gdfq.sweeps.running import check_folders, check_networks, one_after_another
from gdfq.sweeps.sweep import PAGE, run_sweep


def sweep(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="the sweep, a .toml file")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the sweep, new or one to resume; by default the file's name in "
            "`sweeps`",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    workers: Annotated[int | None, WORKERS] = None,
    checkpoint_every: Annotated[float, CHECKPOINT_EVERY] = OPTIONS.checkpoint_every,
    report: Annotated[bool, REPORT] = True,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="do the runs as tasks of Ray, of the cluster that RAY_ADDRESS names"
        ),
    ] = False,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            min=0, help="with --ray; by default 1 where the cluster has any", show_default=False
        ),
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(min=0, help="with --ray")] = 1.0,
) -> None:
    """Run variants of a recipe with several seeds, and compare them in one page.

    Called again with the same folder, it keeps finished runs and resumes interrupted ones.
    """
    if context.obj.parallel:
        raise InputError("sweep: its runs are of one process each; start it without torchrun")
    if gpus_per_run is not None and not ray:
        raise InputError("gpus_per_run: is for --ray, which was not given")
    plan = read_plan(file)
    folder = out or Path("sweeps") / file.stem
    # Over Ray, the device is another machine's; "auto" is there what that one has.
    own_device = resolve_device("auto" if ray else device)
    options = Options(
        device=device, checkpoint_every=checkpoint_every, workers=workers, report=report
    )
    check_folders(plan, folder)
    check_networks(plan, None if ray else own_device)
    keep_freed_memory()
    if ray:
        launch = over_ray(options, gpus_per_run, cpus_per_run, _stopping, print_text)
    else:
        launch = one_after_another(options, lambda: console_progress(console), print_stopping)
    try:
        found = run_sweep(plan, folder, launch, own_device, print_text, print_warning, ray)
    except Interrupted as error:
        again = f"gdfq sweep {shlex.quote(str(file))} --out {shlex.quote(str(folder))}"
        again += " --ray" * ray
        print_error(f"gdfq: {explain_end(error, folder, again)}")
        raise typer.Exit(error.exit_code) from None
    _print(found, folder)
    if any(run.status != "finished" for run in found.runs):
        raise typer.Exit(EXIT_FAILED)


def _stopping() -> None:
    print_error("stopping the runs, which save first; a second signal ends at once")


def _print(found: Sweep, folder: Path) -> None:
    table = Table(
        title=f"{found.recipe}, mean ± standard deviation over seeds",
        caption="top-1 in percent, after fine-tuning; difference: to the reference, seed by seed; "
        "divergence from the teacher on generated images, 1/1000 nat",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("variant", overflow="fold")
    for column in ("runs", "top-1", "lost", "difference", "won", "divergence"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.variants:
        table.add_row(
            row.name,
            f"{row.finished}/{len(found.seeds)}",
            plus_minus(row.after, two),
            plus_minus(row.lost, two),
            "reference" if row.reference and row.difference is None else difference(row.difference),
            won(row.difference),
            plus_minus(row.divergence, thousandths),
        )
    print_table(table)
    for run in found.runs:
        if run.status != "finished":
            print_text(f"{run.folder}: {run.status}{': ' + run.reason if run.reason else ''}")
    for group in found.groups:
        if group.chosen is not None:
            print_text(
                f"{group.name}: {group.chosen} diverges least on generated images, in "
                f"{group.lowest} of {group.seeds} seeds; top-1 was not used to choose"
            )
        if group.note:
            print_text(f"{group.name}: {group.note}")
    print_text(f"Page: {folder / PAGE}")
