"""Loading of a teacher: its network, weights and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.errors import InputError
from gdfq.nn.given import call_and_keep_images, one_line, require_logits
from gdfq.sources import preprocessing
from gdfq.sources.preprocessing import DATA_SETS, Preprocessing
from gdfq.sources.registries import (
    Embedded,
    Factory,
    InMemory,
    Source,
    build_pretrained,
    find_source,
)
from gdfq.sources.state import load_state

Shape = tuple[int, int, int]  # of an image: channels, height, width
FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher as :func:`load_teacher` returns it.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        weights: exact origin of its weights: a file's full path, or a tag of the source.
        preprocessing: of its input.
        notes: a line for each assumption or choice made while loading.
    """

    network: nn.Module
    weights: str
    preprocessing: Preprocessing
    notes: list[str] = field(default_factory=list)


def load_teacher(
    model: str,
    weights: str | None = None,
    data: str = "none",
    seed: int = 0,
    network: nn.Module | None = None,
    **given: Any,
) -> LoadedTeacher:
    """Load the network ``model`` with weights, and check it on random images.

    Args:
        model: ``torchvision:NAME``, ``timm:NAME``, ``pytorchcv:NAME``, ``gdfq:NAME`` or
            ``package.module:factory``.
        weights: a file (safetensors or a state dict of ``torch.save``, read without executing
            code), ``"pretrained"`` or a tag of the source (downloaded by its library),
            ``"builtin"`` (embedded in this package, or the factory's own) or ``"random"``. None
            selects the source's default weights; a factory has none.
        data: data set of the evaluation, see ``DATA_SETS``; supplies values unknown otherwise.
        seed: of the initialization with ``"random"`` weights.
        network: the caller's network, which is copied, with its own weights unless ``weights`` is
            a file; ``model`` is then its name.
        given: fields of :class:`Preprocessing`, which take precedence over the source's.

    Raises:
        InputError: the network or file does not exist, the weights do not fit or cannot be
            loaded, the network does not accept the images, or its output is not logits
            ``(N, num_classes)``.
    """
    given = {key: value for key, value in given.items() if value is not None}
    source = find_source(model) if network is None else InMemory(model, network)
    kind, weights = _resolve_weights(source, weights)
    tag = weights if kind == "tag" else None
    facts = _facts(source, kind, weights)
    if network is not None:
        model = source.name  # in messages
    size = preprocessing.image_size(model, given, facts, data)
    asked = dict(given)
    if isinstance(source, Embedded) and data in DATA_SETS:
        # These networks have no default number of classes; use the data set's.
        asked = {k: DATA_SETS[data][k] for k in ("num_classes", "channels")} | asked

    notes: list[str] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        loaded = build_pretrained(source, tag, asked) if tag else source.build(None, asked)
        loaded.float()
        if kind == "file":
            notes = load_state(loaded, Path(weights), model)
        shape = (asked.get("channels", facts.get("channels", 3)), size, size)
        if kind == "random":
            _initialize_batch_norms(loaded, shape, model, facts.get("image_size"))
    loaded.eval()
    classes = _count_classes(loaded, shape, model, facts.get("image_size"))
    if given.get("num_classes", classes) != classes:
        raise InputError(
            f"num_classes: {given['num_classes']} given, but {model} with these weights has "
            f"{classes} classes"
        )
    found, decided = preprocessing.resolve(
        model, classes, {**given, "channels": shape[0]}, facts, data
    )
    notes += decided
    if data in DATA_SETS and data != "imagenet" and DATA_SETS[data]["num_classes"] != classes:
        raise InputError(
            f"data: {data} has {DATA_SETS[data]['num_classes']} classes, {model} has {classes}"
        )
    if kind == "random":
        notes.append("weights: random ones; good for trying out, the accuracy means nothing")
    return LoadedTeacher(loaded, weights, found, notes)


def expected_image_size(model: str, weights: str | None, data: str, given: int | None) -> int:
    """Return the height and width of the network's input without building the network."""
    facts: dict[str, Any] = {}
    if not model.startswith(f"{InMemory.prefix}:"):
        source = find_source(model)
        facts = _facts(source, *_resolve_weights(source, weights))
    model = model.removeprefix(f"{InMemory.prefix}:")
    asked = {} if given is None else {"image_size": given}
    return preprocessing.image_size(model, asked, facts, data)


def _facts(source: Source, kind: str, weights: str) -> dict[str, Any]:
    """Return the input's known properties with these weights, see :func:`_resolve_weights`."""
    if kind == "file":
        return source.facts(source.tag_of_file(Path(weights)))
    return source.facts(weights if kind == "tag" else None)


def _resolve_weights(source: Source, weights: str | None) -> tuple[str, str]:
    """Return the kind of weights, ``"random"``, ``"tag"`` or ``"file"``, and their exact name."""
    tags = source.tags()
    if weights == "random":
        return "random", weights
    if weights is None and tags and not isinstance(source, Factory):
        return "tag", tags[0]
    pretrained = ["pretrained"] if tags and tags[0] not in ("builtin", "pretrained") else []
    if weights in pretrained:
        return "tag", tags[0]
    if weights == "DEFAULT" and source.prefix == "torchvision" and tags:
        return "tag", tags[0]
    if weights in tags:
        return "tag", weights
    allowed = ", ".join(["a file", *pretrained, *tags, "random"])
    if weights is None:
        raise InputError(f"weights: must be given for {source.model}: {allowed}")
    path = Path(weights)
    if path.is_file():
        return "file", str(path.resolve())
    if len(path.parts) > 1 or weights.endswith(FILE_ENDINGS):
        raise InputError(f"weights: there is no file {weights}")
    raise InputError(f"weights: for {source.model} must be {allowed}; got {weights!r}")


def _image_error(error: Exception, shape: Shape, model: str, usual: int | None) -> InputError:
    """Return the error for images that ``model`` does not take; ``usual``: its source's size."""
    made_for = f"; it is made for {usual}x{usual}" if usual not in (None, shape[1]) else ""
    return InputError(
        f"model: {model} does not take images of {'x'.join(map(str, shape))} (channels, height, "
        f"width){made_for}: {one_line(error)}"
    )


@torch.no_grad()
def _count_classes(network: nn.Module, shape: Shape, model: str, usual: int | None) -> int:
    """Return the number of classes, found by a forward pass on random images."""
    try:
        images = torch.randn(
            2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        logits = call_and_keep_images(network, images)
    except Exception as error:
        raise _image_error(error, shape, model, usual) from error
    logits = require_logits(logits, f"model: {model}")
    if logits.dim() != 2:
        raise InputError(
            f"model: {model} returns a tensor of shape {tuple(logits.shape)} for two images, not "
            "logits (2, num_classes)"
        )
    if logits.shape[1] < 2:
        raise InputError(f"model: {model} has {logits.shape[1]} classes, needs 2 or more")
    return logits.shape[1]


@torch.no_grad()
def _initialize_batch_norms(
    network: nn.Module, shape: Shape, model: str, usual: int | None
) -> None:
    """Set batch-norm statistics from a batch of noise; deep networks overflow without it."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # replace the running statistics by this batch's
    try:
        network.train()(torch.randn(8, *shape, dtype=torch.float32))
    except Exception as error:
        raise _image_error(error, shape, model, usual) from error
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
