"""``gdfq bench``: the time of a training step."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import typer

from gdfq.bench.formulations import Settings, check_rivals
from gdfq.bench.measure import measure
from gdfq.bench.networks import WORKLOADS
from gdfq.bench.report import details, table, traffic_table
from gdfq.cli._common import DEVICE, print_table, print_text
from gdfq.environment import resolve_device
from gdfq.errors import InputError
from gdfq.ops._checks import check_choice
from gdfq.training.precision import check_precision


def bench(
    context: typer.Context,
    network: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "resnet20",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="also time plain (PyTorch), frozen (the same, teacher frozen), compile (that "
            "under torch.compile) or, on a GPU, max-autotune (that, tuned, in one CUDA graph), "
            "interleaved with ours; may be given several times",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="images per step", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="height and width of an image", show_default=False)
    ] = None,
    weight_bits: Annotated[int, typer.Option(help="bits of weights")] = 4,
    act_bits: Annotated[int, typer.Option(help="bits of activations")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="steps to take the median of")] = 7,
    warm_up: Annotated[bool, typer.Option(help="time the phase without the student")] = False,
    precision: Annotated[str, typer.Option(help="fp32, tf32 or bf16")] = "fp32",
    rival_precision: Annotated[
        str | None,
        typer.Option(help="the others' precision; default: the same", show_default=False),
    ] = None,
    memory_format: Annotated[
        str, typer.Option(help="auto, channels_last or contiguous; ours only")
    ] = "auto",
    fuse: Annotated[bool, typer.Option(help="fuse the student's layers; ours only")] = True,
    keep_pages: Annotated[
        bool, typer.Option(help="let the others keep freed memory too, as ours does")
    ] = False,
    memory: Annotated[bool, typer.Option(help="measure peak memory too")] = True,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Time a training step on random images: by phase, and beside other formulations.

    Under torchrun, also print the collective traffic.
    """
    check_choice("network", network, [*WORKLOADS])
    device = resolve_device(device)
    workload = WORKLOADS[network]
    if batch_size is not None:
        workload = replace(workload, batch_size=batch_size)
    if image_size is not None:
        workload = replace(workload, image_size=image_size)
    others = rival_precision or precision
    check_precision(precision, torch.device(device))
    check_precision(others, torch.device(device), "rival_precision")
    settings = Settings(
        weight_bits, act_bits, steps, warm_up, device, fuse, keep_pages,
        {"precision": precision, "memory_format": memory_format},
        others,  # type: ignore[arg-type]
    )  # fmt: skip
    rivals = check_rivals(against or [], device)
    world = context.obj
    if world.parallel and rivals:
        raise InputError("against: others are timed in one process only, without torchrun")
    memory = memory and not world.parallel
    results, trainer = measure(workload, settings, rivals, memory, world)
    phase = "warm-up" if warm_up else "fine-tuning"
    size = f"{workload.image_size}x{workload.image_size}"
    title = f"{network}, {size}, batch {workload.batch_size}, {phase}, median of {steps}"
    print_table(table(results, title))
    if world.parallel:
        print_table(traffic_table(results[0], world.size))
    for text in (details(results[0]), trainer.describe()):
        print_text(text)
