"""Restoring of plain layers where subclasses were traced into functions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from gdfq.convert.tables import LAYER_CALLS
from gdfq.nn.statistics import BATCH_NORMS

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONVOLUTION_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_LINEAR = ("input", "weight", "bias")
_BATCH_NORM = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
)  # fmt: skip
_BATCH_NORM_DEFAULTS = {
    "weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip


def restore_layers(root: nn.Module, graph: fx.Graph) -> None:
    """Make ``graph`` call PyTorch's layers where ``root`` has subclasses of them.

    Tracing replaces a subclass (timm's ``BatchNormAct2d``, ``Conv2dSame``) by its forward, with a
    call of ``F.batch_norm``, ``F.conv2d`` or ``F.linear`` on its parameters. This call becomes a
    plain layer, which replaces the subclass in ``root`` under the same names.
    """
    made: dict[str, tuple[nn.Module, dict[str, Any]]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is F.batch_norm:
            options = _arguments(node, _BATCH_NORM, _BATCH_NORM_DEFAULTS)
            kinds: Any = BATCH_NORMS
        elif node.target in LAYER_CALLS:
            kinds = (LAYER_CALLS[node.target],)
            names = _CONVOLUTION if kinds == (nn.Conv2d,) else _LINEAR
            options = _arguments(node, names, _CONVOLUTION_DEFAULTS)
        else:
            continue
        source = options.pop("input", None)
        path, owned = _owner(options)
        constants = {k: v for k, v in options.items() if k not in owned}
        if (
            not isinstance(source, fx.Node)
            or any(isinstance(value, fx.Node) for value in constants.values())
            or (kinds is BATCH_NORMS and not {"running_mean", "running_var"} <= owned)
            or constants.get("training")
        ):
            continue
        if path in made:
            plain, made_with = made[path]
            if made_with != constants:
                continue
        else:
            module = root.get_submodule(path) if path else None
            kind = next((kind for kind in kinds if isinstance(module, kind)), None)
            if module is None or kind is None or not _is_complete(module, owned):
                continue
            plain = _plain(kind, module, constants)
            for other, found in list(root.named_modules(remove_duplicate=False)):
                if found is module:
                    root.set_submodule(other, plain)
            made[path] = plain, constants
        with graph.inserting_before(node):
            call = graph.call_module(path, (source,))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        for value in options.values():
            if isinstance(value, fx.Node) and not value.users:
                graph.erase_node(value)


def _arguments(node: fx.Node, names: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {name: given.get(name, defaults.get(name)) for name in names}


def _owner(options: dict[str, Any]) -> tuple[str, set[str]]:
    """Return the path of the module that owns the arguments under their names, and these names."""
    owned = {}
    for name, value in options.items():
        if isinstance(value, fx.Node) and value.op == "get_attr":
            path, _, attribute = str(value.target).rpartition(".")
            if attribute == name:
                owned[name] = path
    paths = set(owned.values())
    return (paths.pop(), set(owned)) if len(paths) == 1 else ("", set())


def _is_complete(module: nn.Module, owned: set[str]) -> bool:
    """Whether the attributes ``owned`` are the whole state of ``module``."""
    own = {name for name, value in module._parameters.items() if value is not None}
    own |= {name for name, value in module._buffers.items() if value is not None}
    if isinstance(module, BATCH_NORMS):
        return own - {"num_batches_tracked"} == owned
    return own == owned and not module._modules


def _plain(kind: Any, module: Any, constants: dict[str, Any]) -> nn.Module:
    """Create a layer of the PyTorch class ``kind`` with the parameters of ``module``."""
    plain: Any
    if kind is nn.Linear:
        plain = kind(module.in_features, module.out_features, device="meta")
    elif kind is nn.Conv2d:
        outputs, inputs, *size = module.weight.shape
        geometry = {k: v for k, v in constants.items() if k != "bias"}
        plain = kind(inputs * geometry["groups"], outputs, size, device="meta", **geometry)
    else:
        plain = kind(module.num_features, eps=constants["eps"], device="meta")
        for name in ("momentum", "affine", "track_running_stats"):
            setattr(plain, name, getattr(module, name))
        # The graph calls submodules, such as an activation after the norm, by their paths.
        plain._modules = dict(module._modules)
    plain._parameters = module._parameters
    plain._buffers = module._buffers
    plain._non_persistent_buffers_set = module._non_persistent_buffers_set
    return plain.train(module.training)
