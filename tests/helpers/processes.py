"""Runs functions in several processes that reach each other by gloo."""

from __future__ import annotations

import os
import socket

import torch
import torch.multiprocessing as mp

from gdfq import distributed


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_processes(function, size, folder, *arguments):
    """``function(world, *arguments)`` in each of ``size`` processes; the results by rank."""
    port = free_port()
    mp.start_processes(
        _process, (function, size, port, folder, arguments), nprocs=size, start_method="spawn"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _process(rank, function, size, port, folder, arguments):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    world = distributed.start()
    torch.save(function(world, *arguments), folder / f"{rank}.pt")
    distributed.stop(world)
