"""Kill a run at random moments, resume it, compare: ``python -m benchmarks.kills --kills 20``.

The same run is done twice: undisturbed, and killed by SIGKILL and resumed ``--kills`` times.
After every kill each file in the run's folder must be readable. At the end student,
metrics, picture and recipe must be equal byte for byte. With ``--processes N`` torchrun starts N,
one of which is killed; the others must end by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from gdfq.recipes import load_recipe
from gdfq.training.checkpoint import checkpoints, read_checkpoint

RECIPE = [
    "--recipe", "fashion-mnist-resnet20", "--data", "none", "--width", "8", "--batch-size", "8",
    "--epochs", "10", "--steps-per-epoch", "8", "--warmup-epochs", "4",
    "--calibration-batches", "4", "--memory-format", "contiguous", "--seed", "1",
]  # fmt: skip
SAME = ("student.safetensors", "metrics.jsonl", "images.png", "recipe.toml")
SECONDS_TO_END = 30.0  # for the other processes, after one was killed


@dataclass
class Kill:
    """The state of the run at a kill."""

    phase: str
    step: int
    writing: bool
    ended: float


def launch(processes: int, log: Path, *arguments: str) -> subprocess.Popen:
    """Start ``gdfq`` with its output in ``log``."""
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(many if processes > 1 else []), "-m", "gdfq", *arguments]
    return subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT)


def victim(process: subprocess.Popen, processes: int, choose: random.Random) -> int:
    """Return the process to kill: the run's only one, or one of torchrun's workers."""
    if processes == 1:
        return process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split()
    return int(choose.choice(workers)) if workers else process.pid


def stamp(path: Path) -> int:
    """Return a number that changes when ``path`` is replaced."""
    return path.stat().st_ino if path.exists() else 0


def check_readable(folder: Path) -> None:
    """Raise if any visible file is incomplete."""
    for path in checkpoints(folder):
        read_checkpoint(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
    if (folder / "recipe.toml").exists():
        load_recipe(str(folder / "recipe.toml"))
    if (folder / "student.safetensors").exists():
        load_file(folder / "student.safetensors")
    if (folder / "images.png").exists():
        Image.open(folder / "images.png").load()


def kill_once(
    folder: Path,
    process: subprocess.Popen,
    processes: int,
    window: float,
    starting: bool,
    choose: random.Random,
) -> Kill | None:
    """Kill at a random moment of the run or, if ``starting``, of its start.

    Returns None if the run ended before.
    """
    metrics = folder / "metrics.jsonl"
    before = stamp(metrics)
    started = time.monotonic()
    while not starting and stamp(metrics) == before and process.poll() is None:
        time.sleep(0.01)
    time.sleep(choose.uniform(0, 3.0 if starting else window))
    if process.poll() is not None:
        return None
    os.kill(victim(process, processes, choose), signal.SIGKILL)
    killed = time.monotonic()
    process.wait(timeout=SECONDS_TO_END)
    phase = "start" if stamp(metrics) == before else "run"
    step = max((int(p.stem.split("-")[1]) for p in checkpoints(folder)), default=0)
    writing = any(folder.glob(".*.partial"))
    print(
        f"  killed {killed - started:.1f} s after the start, newest checkpoint: step {step}"
        + (", while writing a file" if writing else ""),
        flush=True,
    )
    return Kill(phase, step, writing, time.monotonic() - killed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    choose = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed, log = (Path(temporary) / name for name in ("whole", "killed", "log"))
        started = time.monotonic()
        process = launch(given.processes, log, "quantize", *RECIPE, "--out", str(whole))
        while process.poll() is None and not (whole / "metrics.jsonl").exists():
            time.sleep(0.01)
        training = time.monotonic()
        if process.wait():
            sys.exit(log.read_text())
        window = 1.6 * (time.monotonic() - training) / given.kills
        print(f"undisturbed: {time.monotonic() - started:.0f} s; kills within {window:.1f} s")

        kills: list[Kill] = []
        always = ("--checkpoint-every", "0.1")
        while len(kills) < given.kills:
            arguments: tuple[str, ...]
            if (killed / "recipe.toml").exists():
                arguments = ("--resume", str(killed), *always)
            else:
                arguments = (*RECIPE, "--out", str(killed), *always)
            process = launch(given.processes, log, "quantize", *arguments)
            # One kill in five hits the start, which takes most of the time at little risk.
            starting = len(kills) % 5 == 2
            kill = kill_once(killed, process, given.processes, window, starting, choose)
            if kill is None:
                break
            if killed.exists():
                check_readable(killed)
            kills.append(kill)
        process = launch(given.processes, log, "quantize", "--resume", str(killed))
        if process.wait():
            sys.exit(log.read_text())
        different = [
            name for name in SAME if (whole / name).read_bytes() != (killed / name).read_bytes()
        ]
        starts = sum(kill.phase == "start" for kill in kills)
        writes = sum(kill.writing for kill in kills)
        print(
            f"{len(kills)} kills of {given.processes} process(es), {starts} of them before training"
            f" had resumed and {writes} during a write; all processes ended within "
            f"{max(kill.ended for kill in kills):.1f} s; no unreadable file; "
            f"{'different: ' + ', '.join(different) if different else 'all files equal'}"
        )
    sys.exit(bool(different) or len(kills) < given.kills)


if __name__ == "__main__":
    main()
