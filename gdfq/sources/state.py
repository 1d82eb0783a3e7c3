"""Weights from files, of which nothing is ever executed."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gdfq.errors import InputError

# Of several entries that fit, the one under the first of these keys is a training script's network.
NESTED = ("state_dict", "model", "model_state_dict")
# Weights averaged over the training, which scripts keep beside the trained ones.
AVERAGES = re.compile(
    r"(^|[._-]|(?<=[a-z])(?=[A-Z]))(?i:ema|swa|avg|averaged?|shadow|mean_?teacher)([._-]|$)"
)
# What torch.compile, FSDP and activation checkpointing put into names, anywhere.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Files of old versions of PyTorch have no such counters, and nothing here reads them.
COUNTER = "num_batches_tracked"
NO_PREFIX = "names without a prefix"


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


@dataclass(frozen=True)
class _State:
    """Tensors by name in a file, and how those of a network are called there.

    Attributes:
        key: where in the file, ``"model"`` or ``"ema.module"``; empty for the file itself.
        prefix: of the network's names.
        tensors: all of them, under their own names.
        missing: the network's names that are not there.
        fits: whether nothing is missing and all shapes are the network's.
    """

    key: str
    prefix: str
    tensors: dict[str, Tensor]
    missing: list[str]
    fits: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        names = [repr(self.key)] * bool(self.key) + [f"'{self.prefix}*'"] * bool(self.prefix)
        return ", ".join(names)

    def alone(self, path: Path) -> str:
        """How to take it, whatever else ``path`` holds."""
        if not self.key or self.prefix:
            return f"to take {self.name or 'the rest'}, leave the other entries out of the file"
        keys = "".join(f"[{key!r}]" for key in self.key.split("."))
        return f"to take it, torch.save(torch.load({path.name!r}){keys}, 'other.pt')"

    @property
    def averaged(self) -> bool:
        """Whether it is of weights averaged over the training, by its name."""
        return bool(AVERAGES.search(f"{self.key}.{self.prefix}"))

    @property
    def described(self) -> str:
        """How messages call it beside the one that is taken."""
        kinds = ["averages"] * self.averaged
        kinds += [] if self.fits else [f"without {self.missing[0]!r}"]
        return (self.name or NO_PREFIX) + (f" ({', '.join(kinds)})" if kinds else "")

    @property
    def rank(self) -> tuple[bool, int]:
        """Smaller for what is taken first."""
        first = self.key.partition(".")[0]
        return self.averaged, NESTED.index(first) if first in NESTED else len(NESTED)


def _read(path: Path) -> Any:
    """What is in a safetensors file or one of ``torch.save``.

    Raises:
        InputError: it cannot be read, or holds more than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The warnings advise to read the file in a way that executes it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"weights: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights: {path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        problem = refusal(error) or "cannot be read: it is damaged, or no file of torch.save"
        raise InputError(f"weights: {path} {problem}") from error


def _dictionaries(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of each dictionary in ``content``, by where it is."""
    if not isinstance(content, dict):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _dictionaries(value, f"{key}.{name}" if key else name)


def _states(content: Any, own: dict[str, Tensor]) -> list[_State]:
    """What could be the state of a network whose state is ``own``: best first."""
    needed = {name for name in own if name.rpartition(".")[2] != COUNTER}
    unwrap = not any(WRAPPERS.search(name) for name in own)
    found = []
    for key, tensors in _dictionaries(content):
        if unwrap:
            tensors = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
        count: Counter[str] = Counter()
        for name in tensors:
            starts = [0, *(match.end() for match in re.finditer(r"[._-]", name))]
            prefixes = [name[:start] for start in starts if name[start:] in needed]
            count.update(p for p in prefixes if p[-1:] in ("", ".") or AVERAGES.search(p))
        averages = {p: n for p, n in count.items() if AVERAGES.search(p)}
        for prefix in dict.fromkeys([*_most(count), *_most(averages)] or [""]):
            missing = [name for name in own if name in needed and prefix + name not in tensors]
            fits = not missing and all(tensors[prefix + n].shape == own[n].shape for n in needed)
            found.append(_State(key, prefix, tensors, missing, fits))
    found.sort(key=lambda state: (not state.fits, len(state.missing), state.rank))
    return [state for state in found if len(state.missing) < len(needed)] or found


def _most(count: dict[str, int]) -> list[str]:
    return [prefix for prefix, number in count.items() if number == max(count.values())]


def _listed(content: dict[Any, Any]) -> str:
    """The entries of ``content`` in a line."""
    entries = [
        f"{key!r} ({f'{len(value)} entries' if isinstance(value, dict) else type(value).__name__})"
        for key, value in content.items()
    ]
    return ", ".join(entries[:8]) + (f", and {len(entries) - 8} more" if len(entries) > 8 else "")


def load_state(network: nn.Module, path: Path, model: str) -> list[str]:
    """Load the file ``path`` into ``network``, called ``model`` in messages.

    The state may be under keys of a training script, and each of its names may start with
    ``"module."`` or another prefix: what has all of the network's names is taken. Of several, the
    one under ``"state_dict"``, ``"model"`` or ``"model_state_dict"``, and weights that are averaged
    over the training last.

    Returns:
        A line about what was taken, where the file has more that could have been.

    Raises:
        InputError: the file cannot be read, or a key is missing, unexpected, of another shape or of
            numbers that are no weights; the first of each is named. Or several entries fit alike.
    """
    content = _read(path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"weights: {path} holds no state dict but a {type(content).__name__}; "
            "write it with torch.save(model.state_dict(), ...)"
        )
    own = network.state_dict()
    states = _states(content, own)
    if not states:
        key, value = next(iter(content.items()))
        raise InputError(
            f"weights: {path} holds no state dict: {key!r} is a {type(value).__name__}; "
            "write it with torch.save(model.state_dict(), ...)"
        )
    taken, *others = states
    alike = [state for state in others if state.fits and state.rank == taken.rank]
    if taken.fits and alike:
        names = " and ".join(state.name or NO_PREFIX for state in (taken, *alike))
        raise InputError(
            f"weights: {path} holds several states that fit {model}: {names}; {taken.alone(path)}"
        )
    # Averages may be under names that only begin in another way.
    averages = tuple(s.prefix for s in others if s.key == taken.key and s.prefix and s.averaged)
    state, left = {}, []
    for name, value in taken.tensors.items():
        short = name.removeprefix(taken.prefix)
        if name.startswith(taken.prefix) and (short in own or not name.startswith(averages)):
            state[short] = value
        else:
            left.append(name)
    problem = _load(network, own, state)
    if problem:
        where = f", {taken.name}," if taken.name else ""
        has = f"; the file has {_listed(content)}" if taken.key or len(states) > 1 else ""
        raise InputError(f"weights: {path}{where} does not fit {model}: {problem}{has}")
    notes = []
    rivals = [other for other in others if other.fits or other.averaged]
    if rivals:
        names = " and ".join(other.described for other in rivals)
        notes.append(
            f"weights: {taken.name or NO_PREFIX} of {path} taken; it also has "
            f"{names}; {rivals[0].alone(path)}"
        )
    elif left:
        notes.append(
            f"weights: {taken.name} of {path} taken, and not {left[0]!r}"
            + (f" and {len(left) - 1} more" if left[1:] else "")
        )
    elif taken.averaged:
        notes.append(f"weights: {taken.name} of {path} taken, averaged over the training")
    return notes


def _load(network: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """Load ``state`` into ``network``; what prevents it, or nothing."""
    shared = [name for name in own if name in state]
    problems = [
        f"{name!r} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in shared
        if state[name].shape != own[name].shape
    ]
    problems = problems or [
        f"{name!r} {why}" for name in shared if (why := _no_numbers(state[name], own[name]))
    ]
    if problems:
        count, problems = len(problems), problems[:1]
    else:
        dense = {k: v if v.layout == torch.strided else v.to_dense() for k, v in state.items()}
        try:
            found = network.load_state_dict(dense, strict=False)
        except RuntimeError as error:
            return str(error).splitlines()[-1].strip()
        missing = [key for key in found.missing_keys if key.rpartition(".")[2] != COUNTER]
        problems = [f"missing key {key!r}" for key in missing[:1]]
        problems += [f"unexpected key {key!r}" for key in found.unexpected_keys[:1]]
        count = len(missing) + len(found.unexpected_keys)
    more = f", and {count - len(problems)} more" if count > len(problems) else ""
    return ", ".join(problems) + more


def _no_numbers(value: Tensor, own: Tensor) -> str | None:
    """Why ``value`` cannot stand for the network's ``own``, or None."""
    dtype = str(value.dtype).removeprefix("torch.")
    wanted = str(own.dtype).removeprefix("torch.")
    if value.is_meta:
        return "has no values, it is on the meta device"
    if value.is_quantized:
        return f"is quantized to {dtype}; write its float values, weight.dequantize()"
    if value.is_complex() and not own.is_complex():
        return f"is {dtype}, where the network has {wanted}"
    if own.is_floating_point() and not value.is_floating_point():
        return (
            f"is {dtype}, where the network has {wanted}: codes of a quantized network, or no "
            "weights; a teacher's are floating-point numbers"
        )
    return None
