"""Weights from files, of which nothing is ever executed."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gdfq.errors import InputError

# Keys under which training scripts keep a network's state beside other things.
NESTED = ("state_dict", "model", "model_state_dict")
# What data parallelism and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")


@contextmanager
def only_weights() -> Iterator[None]:
    """In here ``torch.load`` reads tensors only, in libraries too, whatever they ask for."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or one of ``torch.save``.

    It may be under ``"state_dict"`` or ``"model"``, and its names may start with ``"module."``.

    Raises:
        InputError: it cannot be read, or holds more than tensors and plain containers.
    """
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # The warnings advise to read the file in a way that executes it.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"weights: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights: {path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        problem = refusal(error) or "cannot be read: it is damaged, or no file of torch.save"
        raise InputError(f"weights: {path} {problem}") from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"weights: {path} holds no state dict but a {type(content).__name__}; "
            "write it with torch.save(model.state_dict(), ...)"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights: {path} holds no state dict: {key!r} is a {type(value).__name__}"
            )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def refusal(error: Exception) -> str | None:
    """Why a file was refused that holds more than tensors; None if ``error`` is another."""
    # torch names what the file would call: "unsupported GLOBAL posix.system whose module ..."
    called = re.search(r"GLOBAL (\S+)", str(error))
    if "TorchScript" in str(error):
        named = "a TorchScript program"
    elif called:
        named = called[1]
    else:
        return None
    return (
        f"is refused: it holds more than tensors ({named}), such as a whole pickled module, and "
        "reading that can run any code; write the weights with torch.save(model.state_dict(), ...) "
        "or as safetensors"
    )


def load_state(network: nn.Module, path: Path, model: str) -> None:
    """Load the file ``path`` into ``network``, called ``model`` in messages.

    Raises:
        InputError: it cannot be read, or a key is missing, unexpected or of another shape; the
            first of each is named.
    """
    state = read_state(path)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    problems = [
        f"{key!r} has shape {tuple(state[key].shape)}, not {shape}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if not problems:
        found = network.load_state_dict(state, strict=False)
        # Files of old versions of PyTorch have no such counters, and nothing here reads them.
        missing = [k for k in found.missing_keys if not k.endswith(".num_batches_tracked")]
        problems = [f"missing key {key!r}" for key in missing[:1]]
        problems += [f"unexpected key {key!r}" for key in found.unexpected_keys[:1]]
        count = len(missing) + len(found.unexpected_keys)
    else:
        count, problems = len(problems), problems[:1]
    if problems:
        more = f", and {count - len(problems)} more" if count > len(problems) else ""
        raise InputError(f"weights: {path} does not fit {model}: {', '.join(problems)}{more}")
