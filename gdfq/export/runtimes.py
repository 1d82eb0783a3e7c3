"""Execution of ONNX files in ONNX Runtime and OpenVINO, and the types of executed nodes."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.export.onnx_file import require

Runner = Callable[[np.ndarray], np.ndarray]
NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def installed() -> list[str]:
    """Return the installed runtimes."""
    return [name for name in NAMES if importlib.util.find_spec(name)]


def open_model(runtime: str, path: str | Path, threads: int | None = None) -> Runner:
    """Return a function that runs the ONNX file on images ``(N, C, H, W)`` float32.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``. OpenVINO is set to float32; its default is
            bfloat16 on processors that support it.
        path: of the file.
        threads: None uses as many as PyTorch.

    Raises:
        InputError: the package is missing, or the runtime rejects the file.
    """
    threads = threads or torch.get_num_threads()
    if runtime == "onnxruntime":
        session = _session(path, threads)
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    compiled = _compile(path, threads)
    return lambda images: compiled(images)[0]


def _session(path: str | Path, threads: int, profile: Path | None = None) -> Any:
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the classes of its errors are not public
        if type(error).__module__.startswith("onnxruntime"):
            raise InputError(f"file: ONNX Runtime refuses {path}: {line(error)}") from error
        raise


def _compile(path: str | Path, threads: int, **options: Any) -> Any:
    openvino = require("openvino")
    try:
        return openvino.Core().compile_model(
            str(path),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                # Otherwise float inputs of linear layers are quantized to 8 bits in each call.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
                "INFERENCE_NUM_THREADS": threads,
                **options,
            },
        )
    except RuntimeError as error:
        raise InputError(f"file: OpenVINO refuses {path}: {line(error)}") from error


def line(error: Exception) -> str:
    """Format the message of ``error`` in one line."""
    return " ".join(str(error).split())[:300]


# ---- executed nodes ----


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
        session = _session(path, torch.get_num_threads(), Path(folder) / "profile")
        session.run(None, {session.get_inputs()[0].name: images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [
        (event["args"]["op_name"], next(iter(event["args"]["input_type_shape"][0])))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def _nodes_of_openvino(path: str | Path, images: Tensor) -> list[tuple[str, str]]:
    compiled = _compile(path, torch.get_num_threads())
    compiled(images.numpy())
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        (fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts
    ]
    return [kind for kind in kinds if kind[0] not in ("Const", "Input", "Output")]
