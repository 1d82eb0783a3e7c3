"""Loading of weights from files without executing any code in them."""

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

# Keys under which training scripts save the network, in order of preference.
NESTED = ("state_dict", "model", "model_state_dict")
# Names of weights averaged over the training, which scripts save beside the trained ones.
AVERAGES = re.compile(
    r"(^|[._-]|(?<=[a-z])(?=[A-Z]))(?i:ema|swa|avg|averaged?|shadow|mean_?teacher)([._-]|$)"
)
# Name components that torch.compile, FSDP and activation checkpointing insert anywhere.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Files of old PyTorch versions lack these counters, and gdfq does not use them.
COUNTER = "num_batches_tracked"
NO_PREFIX = "names without a prefix"


@contextmanager
def only_weights() -> Iterator[None]:
    """Make every ``torch.load``, also in libraries, refuse anything but tensors."""
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
    """Say why a file with more than tensors was refused; None if ``error`` is a different one."""
    # torch names the callable in the file: "unsupported GLOBAL posix.system whose module ..."
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
    """A candidate for a network's state: one dictionary of tensors in a file.

    Attributes:
        key: of the dictionary, ``"model"`` or ``"ema.module"``; empty for the file itself.
        prefix: before each of the network's names.
        tensors: the dictionary.
        missing: names of the network that it lacks.
        fits: whether no name is missing and all shapes match.
    """

    key: str
    prefix: str
    tensors: dict[str, Tensor]
    missing: list[str]
    fits: bool

    @property
    def name(self) -> str:
        """Its name in messages."""
        names = [repr(self.key)] * bool(self.key) + [f"'{self.prefix}*'"] * bool(self.prefix)
        return ", ".join(names)

    def alone(self, path: Path) -> str:
        """Say how to select it from the file ``path``."""
        if not self.key or self.prefix:
            return f"to take {self.name or 'the rest'}, leave the other entries out of the file"
        keys = "".join(f"[{key!r}]" for key in self.key.split("."))
        return f"to take it, torch.save(torch.load({path.name!r}){keys}, 'other.pt')"

    @property
    def averaged(self) -> bool:
        """Whether its name says that the weights are averaged over the training."""
        return bool(AVERAGES.search(f"{self.key}.{self.prefix}"))

    @property
    def described(self) -> str:
        """Its name in messages, with its difference to the selected state."""
        kinds = ["averages"] * self.averaged
        kinds += [] if self.fits else [f"without {self.missing[0]!r}"]
        return (self.name or NO_PREFIX) + (f" ({', '.join(kinds)})" if kinds else "")

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort key; the smallest is preferred."""
        first = self.key.partition(".")[0]
        return self.averaged, NESTED.index(first) if first in NESTED else len(NESTED)


def _read(path: Path) -> Any:
    """Read a file of safetensors or ``torch.save``.

    Raises:
        InputError: it cannot be read, or holds more than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The warnings advise weights_only=False, which would execute code.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"weights: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights: {path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        problem = refusal(error) or "cannot be read: it is damaged, or not a file of torch.save"
        raise InputError(f"weights: {path} {problem}") from error


def _dictionaries(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dotted key and the tensors of each dictionary nested in ``content``."""
    if not isinstance(content, dict):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _dictionaries(value, f"{key}.{name}" if key else name)


def _states(content: Any, own: dict[str, Tensor]) -> list[_State]:
    """Return candidates for the state of a network with the state ``own``, best first."""
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
        for prefix in dict.fromkeys([*_most_frequent(count), *_most_frequent(averages)] or [""]):
            missing = [name for name in own if name in needed and prefix + name not in tensors]
            fits = not missing and all(tensors[prefix + n].shape == own[n].shape for n in needed)
            found.append(_State(key, prefix, tensors, missing, fits))
    found.sort(key=lambda state: (not state.fits, len(state.missing), state.rank))
    return [state for state in found if len(state.missing) < len(needed)] or found


def _most_frequent(count: dict[str, int]) -> list[str]:
    return [prefix for prefix, number in count.items() if number == max(count.values())]


def _listed(content: dict[Any, Any]) -> str:
    entries = [
        f"{key!r} ({f'{len(value)} entries' if isinstance(value, dict) else type(value).__name__})"
        for key, value in content.items()
    ]
    return ", ".join(entries[:8]) + (f", and {len(entries) - 8} more" if len(entries) > 8 else "")


def load_state(network: nn.Module, path: Path, model: str) -> list[str]:
    """Load the weights in the file ``path`` into ``network``, called ``model`` in messages.

    The state may be nested under keys, and its names may have a prefix such as ``"module."``. The
    entry with all of the network's names is loaded; among several, the one under ``"state_dict"``,
    ``"model"`` or ``"model_state_dict"``, and weights averaged over the training last.

    Returns:
        A note about the choice, if the file has other candidates.

    Raises:
        InputError: the file cannot be read; several entries fit equally; or a tensor is missing,
            unexpected, of a different shape, or not of floating-point weights. The first is named.
    """
    content = _read(path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"weights: {path} holds a {type(content).__name__}, not a state dict; "
            "write it with torch.save(model.state_dict(), ...)"
        )
    own = network.state_dict()
    states = _states(content, own)
    if not states:
        key, value = next(iter(content.items()))
        raise InputError(
            f"weights: {path} is not a state dict: {key!r} has type {type(value).__name__}; "
            "write it with torch.save(model.state_dict(), ...)"
        )
    taken, *others = states
    alike = [state for state in others if state.fits and state.rank == taken.rank]
    if taken.fits and alike:
        names = " and ".join(state.name or NO_PREFIX for state in (taken, *alike))
        raise InputError(
            f"weights: {path} holds several states that fit {model}: {names}; {taken.alone(path)}"
        )
    # Averages may lie in the same dictionary under another prefix.
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
    """Load ``state`` into ``network``; return the problem that prevents it, or ``""``."""
    shared = [name for name in own if name in state]
    problems = [
        f"{name!r} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in shared
        if state[name].shape != own[name].shape
    ]
    problems = problems or [
        f"{name!r} {why}" for name in shared if (why := _unusable(state[name], own[name]))
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


def _unusable(value: Tensor, own: Tensor) -> str | None:
    """Say why ``value`` cannot replace the network's tensor ``own``; None if it can."""
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
            f"is {dtype}, where the network has {wanted}: codes of a quantized network, or "
            "not weights; a teacher's are floating-point numbers"
        )
    return None
