"""Types of the nodes that a runtime executes of an ONNX file."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from gdfq.export import runtimes


def executed(runtime: str, path: str | Path, images: Tensor) -> dict[str, int]:
    """Count executed nodes by operation and type, ``{"QLinearConv, uint8": 21, ...}``.

    Read from the runtime's profile of a run on ``images``. The type is that of the first input in
    ONNX Runtime, and the kernel's precision in OpenVINO.
    """
    if runtime == "onnxruntime":
        kinds = _nodes_of_onnxruntime(path, images)
    else:
        kinds = _nodes_of_openvino(path, images)
    return dict(sorted(Counter(", ".join(kind) for kind in kinds).items()))


def _nodes_of_onnxruntime(path: str | Path, images: Tensor) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        session = runtimes._session(path, torch.get_num_threads(), Path(folder) / "profile")
        session.run(None, {session.get_inputs()[0].name: images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [
        (event["args"]["op_name"], next(iter(event["args"]["input_type_shape"][0])))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def _nodes_of_openvino(path: str | Path, images: Tensor) -> list[tuple[str, str]]:
    compiled = runtimes._compile(path, torch.get_num_threads())
    compiled(images.numpy())
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        (fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts
    ]
    return [kind for kind in kinds if kind[0] not in ("Const", "Input", "Output")]
