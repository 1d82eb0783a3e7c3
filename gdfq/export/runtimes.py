"""Execution of ONNX files in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
