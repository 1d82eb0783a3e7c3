"""Copying of a network to be converted."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gdfq.convert.coverage import CoverageReport
from gdfq.convert.model import QuantizedModel
from gdfq.errors import InputError
from gdfq.nn.copying import copied

_EMPTY = QuantizedModel(nn.Module(), fx.Graph(), CoverageReport([]))
# Attributes of a student beyond those of nn.Module.
TAKEN = {*dir(_EMPTY)} - {*dir(nn.Module())}


def float_copy(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode, with plain parameters as weights.

    Reparametrized weights (``weight_norm``, ``spectral_norm``, ``prune``, parametrizations) become
    parameters with their values in evaluation mode.

    Raises:
        InputError: a part of ``model`` has the name of an attribute of the student.
    """
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in TAKEN:
            raise InputError(
                f"model: {name!r} is also the name of an attribute of torch.fx.GraphModule, which "
                "the student is; rename it in the network or put the network into another module"
            )
    made = copied(model).eval()
    for module in [*made.modules()]:
        _fold(module)
    return made


def _fold(module: nn.Module) -> None:
    for hook in [*module._forward_pre_hooks.values()]:
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
    if parametrize.is_parametrized(module):
        # Removal changes the class, which the copy shares with its model.
        kind = type(module)
        own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
        for name in [*module.get_submodule("parametrizations")._modules]:
            parametrize.remove_parametrizations(module, name)
