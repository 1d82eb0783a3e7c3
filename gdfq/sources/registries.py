"""Sources of networks: torchvision, timm, pytorchcv, this package, and the user's code."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from torch import nn

from gdfq import models
from gdfq.errors import InputError
from gdfq.nn.copying import copied
from gdfq.nn.given import plain_network, require_values
from gdfq.sources.preprocessing import DATA_SETS, IMAGENET_MEAN, IMAGENET_STD
from gdfq.sources.state import load_state, only_weights, refusal

ASSETS = Path(__file__).parents[1] / "assets"
# Weights of the embedded ResNet-20: their data set and file, by tag.
EMBEDDED_WEIGHTS = {
    "builtin": ("fashion-mnist", ASSETS / "fashion_mnist" / "resnet20.safetensors"),
    "cifar10": ("cifar10", ASSETS / "cifar10" / "resnet20.safetensors"),
}
FORMS = "torchvision:NAME, timm:NAME, pytorchcv:NAME, gdfq:NAME or package.module:factory"


class Source:
    """A network of one source.

    Args:
        name: of the network within the source.

    Raises:
        InputError: the source has no such network, or its package is not installed.
    """

    prefix: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def model(self) -> str:
        """Its name in a recipe."""
        return f"{self.prefix}:{self.name}"

    def tags(self) -> list[str]:
        """Return the names of the source's weights for this network, the default first."""
        return []

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Return the known properties of the input, with the keys of a recipe's [teacher]."""
        return {}

    def tag_of_file(self, path: Path) -> str | None:
        """Return the tag of the source's weights that the file's name says it is, else None."""
        return None

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Build the network with the weights ``tag``; freshly initialized if None."""
        raise NotImplementedError


class Torchvision(Source):
    """torchvision's networks for classification."""

    prefix = "torchvision"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.package = _package("torchvision", self.model).models
        _check_name(self.model, name, self.package.list_models(self.package))

    def tags(self) -> list[str]:
        """Return the names of its weights, the default first."""
        weights = self.package.get_model_weights(self.name)
        default = [weights.DEFAULT.name] if len(weights) else []
        return default + [name for name in weights.__members__ if name not in ("DEFAULT", *default)]

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Read the transforms of the weights ``tag``, or of the default ones."""
        tag = tag or next(iter(self.tags()), None)
        if tag is None:
            return {}
        weights = self.package.get_model_weights(self.name)[tag]
        transforms = weights.transforms()
        return {
            "image_size": transforms.crop_size[0],
            "resize": transforms.resize_size[0],
            "channels": len(transforms.mean),
            "mean": transforms.mean,
            "std": transforms.std,
            "interpolation": transforms.interpolation.value,
        }

    def tag_of_file(self, path: Path) -> str | None:
        """Look for the name among those of the files that torchvision downloads."""
        weights = self.package.get_model_weights(self.name)
        return next((w.name for w in weights if PurePosixPath(w.url).name == path.name), None)

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Call ``torchvision.models.get_model``."""
        if given.get("channels", 3) != 3:
            raise InputError(
                f"channels: torchvision's networks take 3, got {given['channels']}; a factory of "
                "your own can change the first layer"
            )
        options = _renamed(given, num_classes="num_classes")
        if self.name in ("googlenet", "inception_v3"):
            options["init_weights"] = tag is None  # they warn without it
        return self.package.get_model(self.name, weights=tag, **options)


class Timm(Source):
    """timm's networks; a name may include a tag of weights, as in ``resnet18.a1_in1k``."""

    prefix = "timm"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.package = _package("timm", self.model)
        self.architecture, _, self.tag = name.partition(".")
        _check_name(self.model, self.architecture, self.package.list_models())
        if self.tag and self.tag not in self._all_tags():
            raise InputError(
                f"model: timm's {self.architecture} has no weights {self.tag!r}"
                f"{_near_matches(self.tag, self._all_tags())}"
            )

    def _all_tags(self) -> list[str]:
        names = self.package.list_pretrained(f"{self.architecture}.*")
        return [name.partition(".")[2] for name in names]

    def tags(self) -> list[str]:
        """Return the tag in the name, or all tags of its weights, the default first."""
        if self.tag:
            return [self.tag]
        tags = self._all_tags()
        usual = self.package.get_pretrained_cfg(self.architecture)
        return sorted(tags, key=lambda tag: usual is None or tag != usual.tag)

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Read timm's data config of the weights ``tag``, or of the default ones."""
        from timm.data import resolve_data_config

        tag = tag or self.tag
        name = f"{self.architecture}.{tag}" if tag else self.architecture
        settings = self.package.get_pretrained_cfg(name)
        config = resolve_data_config(pretrained_cfg=settings.to_dict() if settings else {})
        channels, height, width = config["input_size"]
        if height != width:
            raise InputError(f"model: {self.model} takes {height}x{width} images, not square ones")
        facts = {
            "image_size": height,
            "channels": channels,
            "mean": config["mean"],
            "std": config["std"],
            "resize": math.floor(height / config["crop_pct"]),
        }
        if config["crop_mode"] in ("center", "squash"):
            facts["crop"] = config["crop_mode"]
        if config["interpolation"] in ("nearest", "bilinear", "bicubic"):
            facts["interpolation"] = config["interpolation"]
        return facts

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Call ``timm.create_model``."""
        name = f"{self.architecture}.{tag}" if tag else self.name
        options = _renamed(given, num_classes="num_classes", channels="in_chans")
        return self.package.create_model(name, pretrained=tag is not None, **options)


class Pytorchcv(Source):
    """pytorchcv's networks; each has one set of weights, ``pretrained``."""

    prefix = "pytorchcv"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        _package("pytorchcv", self.model)
        self.provider = importlib.import_module("pytorchcv.model_provider")
        _check_name(self.model, name, self.provider._models)

    def tags(self) -> list[str]:
        """Return ``pretrained``."""
        return ["pretrained"]

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Combine the network's attributes and the normalization of the data set in its name."""
        with torch.device("meta"):
            network = self.provider.get_model(self.name)
        size = getattr(network, "in_size", None)
        if size is None or size[0] != size[1]:
            return {}
        for data in ("cifar100", "cifar10"):
            if self.name.endswith(data):
                return {**DATA_SETS[data], "num_classes": network.num_classes}
        facts = {"image_size": size[0]}
        if self.name.endswith("_svhn"):
            return facts
        # pytorchcv evaluates on ImageNet with a crop of 0.875 of the shorter edge.
        resize = math.ceil(size[0] / 0.875)
        return {
            **facts, "channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resize": resize,
        }  # fmt: skip

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Call ``pytorchcv.model_provider.get_model``."""
        options = _renamed(given, num_classes="num_classes", channels="in_channels")
        return self.provider.get_model(self.name, pretrained=tag is not None, **options)


class Embedded(Source):
    """This package's residual networks for small images; ResNet-20 comes with weights."""

    prefix = "gdfq"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        depths = [f"resnet{6 * n + 2}" for n in (3, 5, 7, 9, 18)]
        if not re.fullmatch(r"resnet\d+", name):
            _check_name(self.model, name, depths)
        self.depth = int(name.removeprefix("resnet"))

    def tags(self) -> list[str]:
        """Return the tags of ResNet-20's weights, nothing for other depths."""
        return list(EMBEDDED_WEIGHTS) if self.name == "resnet20" else []

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Return those of the data set that the weights ``tag`` were trained on."""
        return DATA_SETS[EMBEDDED_WEIGHTS[tag][0]] if tag else {}

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Call :func:`gdfq.models.cifar_resnet`."""
        facts = {**self.facts(tag), **given}
        if "num_classes" not in facts:
            raise InputError(f"num_classes: must be given for {self.model}")
        network = models.cifar_resnet(self.depth, facts["num_classes"], facts.get("channels", 3))
        if tag:
            load_state(network, EMBEDDED_WEIGHTS[tag][1], self.model)
        return network


class Factory(Source):
    """A network, or a callable that returns one, in an importable module.

    The working directory is searched too, as by ``python -m``. The callable gets ``num_classes``
    and ``channels`` if they are given and it has such parameters.
    """

    prefix = ""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        module, _, path = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise InputError(f"model: importing {module} failed: {error}") from error
            raise InputError(
                f"model: there is no module {error.name!r} to import, for {name!r}; must be {FORMS}"
            ) from error
        except Exception as error:
            raise InputError(
                f"model: importing {module} failed: {_describe_error(error)}"
            ) from error
        for part in path.split("."):
            if not hasattr(found, part):
                names = [key for key, value in vars(found).items() if callable(value)]
                raise InputError(f"model: {module} has no {part!r}{_near_matches(part, names)}")
            found = getattr(found, part)
        if not callable(found):
            raise InputError(f"model: {name} has type {type(found).__name__}, it is not a factory")
        self.factory = found

    @property
    def model(self) -> str:
        """Its name in a recipe, ``package.module:factory``."""
        return self.name

    def tags(self) -> list[str]:
        """Return ``builtin``: the weights that the factory's network has."""
        return ["builtin"]

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Call the factory."""
        network = self.factory
        if not isinstance(network, nn.Module):
            try:
                accepted = inspect.signature(self.factory).parameters
                passed = {k: given[k] for k in ("num_classes", "channels") if k in given}
                network = self.factory(**{k: v for k, v in passed.items() if k in accepted})
            except Exception as error:
                raise InputError(f"model: {self.name} failed: {_describe_error(error)}") from error
        if not isinstance(network, nn.Module):
            raise InputError(
                f"model: {self.name} returned a {type(network).__name__}, not an nn.Module"
            )
        return network


class InMemory(Source):
    """A network passed as an object; the run's folder keeps its weights, but not its code.

    A recipe names it ``memory:CLASS``; whoever opens the run must pass the network again.

    Args:
        name: of its class; replaced by that of ``network``.
        network: the caller's network.

    Raises:
        InputError: ``network`` is missing, not an ``nn.Module``, or has no values to copy.
    """

    prefix = "memory"

    def __init__(self, name: str, network: nn.Module | None = None) -> None:
        super().__init__(name)
        if network is None:
            raise InputError(
                f"model: the network {name} was given in Python, and a run keeps weights but no "
                "code: give the network again (gdfq.open_run, gdfq.resume and gdfq.load take "
                "it); or name what makes it, gdfq.quantize(..., factory='package.module:function')"
            )
        if not isinstance(network, nn.Module):
            raise InputError(
                f"model: must be an nn.Module or one of {FORMS}, got a {type(network).__name__}"
            )
        self.network = plain_network(network, "model")
        require_values(self.network, "model")
        self.name = type(self.network).__name__

    def tags(self) -> list[str]:
        """Return ``builtin``: the network's own weights."""
        return ["builtin"]

    def facts(self, tag: str | None) -> dict[str, Any]:
        """Return the input channels of the first convolution."""
        convolutions = (m for m in self.network.modules() if isinstance(m, nn.Conv2d))
        first = next(convolutions, None)
        return {} if first is None else {"channels": first.in_channels}

    def build(self, tag: str | None, given: dict[str, Any]) -> nn.Module:
        """Return a float32 copy on the CPU."""
        return copied(self.network).cpu().float()


REGISTRIES: dict[str, type[Source]] = {
    source.prefix: source for source in (Torchvision, Timm, Pytorchcv, Embedded, InMemory)
}


def find_source(model: str) -> Source:
    """Return the source of ``model``, see ``FORMS``.

    Raises:
        InputError: there is no such network; the message lists near matches.
    """
    prefix, _, name = model.partition(":")
    if not name:
        raise InputError(f"model: must be {FORMS}, got {model!r}")
    if prefix in REGISTRIES:
        return REGISTRIES[prefix](name)
    return Factory(model)


def build_pretrained(source: Source, tag: str, given: dict[str, Any]) -> nn.Module:
    """Call ``source.build`` with the weights ``tag``, which its library may have to download.

    Raises:
        InputError: the weights cannot be loaded; one line says why.
    """
    try:
        with only_weights(), _without_warnings():
            return source.build(tag, given)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "num_classes" in str(error):
            raise InputError(f"num_classes: {error}") from error
        problem = refusal(error) or f"failed: {_describe_error(error)}"
        raise InputError(f"weights: {tag} of {source.model} {problem}") from error


@contextmanager
def _without_warnings() -> Any:
    """Suppress the warning of each failed download attempt; the last attempt raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _package(name: str, model: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"model: {model} needs {name}: pip install {name} ({error})") from error


def _renamed(given: dict[str, Any], **names: str) -> dict[str, Any]:
    return {theirs: given[ours] for ours, theirs in names.items() if ours in given}


def _check_name(model: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        prefix = model.partition(":")[0]
        raise InputError(f"model: {prefix} has no network {name!r}{_near_matches(name, known)}")


def _near_matches(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return f"; near matches: {', '.join(near)}"
    return f"; it has {', '.join(known)}" if 0 < len(known) <= 8 else ""


def _describe_error(error: Exception) -> str:
    """Describe an error raised by foreign code in one line, with file and line number."""
    lines = str(error).splitlines()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f" ({Path(frame.filename).name}:{frame.lineno})"
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"
