"""Save and load packed students: bit-packed weight codes and everything needed to rebuild them."""

from __future__ import annotations

import copy
import json
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensors
from torch import Tensor, nn

from gdfq.convert import QuantizedModel, quantize_model
from gdfq.errors import InputError
from gdfq.export.packed_layers import (
    KINDS,
    LayerFacts,
    PackedCall,
    PackedWeight,
    kind_of,
    pack,
    pack_call,
)
from gdfq.files import write_file
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.quantization import Bits
from gdfq.nn.weight import WeightQuantizer
from gdfq.ops._checks import Activation
from gdfq.recipes import Recipe
from gdfq.recipes.files import parse_recipe
from gdfq.recipes.networks import build_network, build_student
from gdfq.settings import Settings

KEY = "gdfq"  # the only metadata entry: safetensors writes several in varying order


class ComputedFacts(Settings):
    """Quantizer of a weight that the network computes and passes to a function."""

    weight_bits: Bits
    zero_in_range: bool
    kernel_ranges: bool = False


class ActFacts(Settings):
    """Quantizer of an activation."""

    act_bits: Bits
    act: Activation
    zero_in_range: bool = False
    dynamic_range: bool = False


class Header(Settings):
    """Metadata of a packed file, by path of the layer in the network."""

    format: Literal[1] = 1
    layers: dict[str, LayerFacts]
    acts: dict[str, ActFacts]
    computed: dict[str, ComputedFacts] = Field({})
    recipe: str | None = None

    def parsed_recipe(self) -> Recipe | None:
        """Return the recipe of the run that trained the student, if there is one."""
        return None if self.recipe is None else parse_recipe(self.recipe, "recipe in the file")


# ---- writing ----


def packed_copy(student: QuantizedModel) -> QuantizedModel:
    """Return a copy with packed weights, whose outputs equal those of ``student`` bit for bit.

    Raises:
        InputError: ``student`` is not a :class:`~gdfq.convert.QuantizedModel`, has weights that
            are not finite, or activations whose range is not set.
    """
    check_student(student)
    packed = copy.deepcopy(student).eval()
    calls, kept = weights_of_calls(packed), read_weights(packed)
    layers = _layers(packed).values()
    _replace(packed, {layer: pack(layer, keep_weight=layer in kept) for layer in layers})
    made: dict[Any, PackedWeight] = {}
    for name, (quantizer, weight) in calls.items():
        key = (
            id(weight), quantizer.weight_bits, quantizer.zero_in_range, quantizer.dynamic_range
        )  # fmt: skip
        if key not in made:
            made[key] = pack_call(quantizer, weight)
        packed.set_submodule(name, made[key])
    _drop_weights_of_calls(packed)
    return packed


def save(student: QuantizedModel, path: str | Path, recipe: Recipe | None = None) -> None:
    """Write a finished student as a packed safetensors file, for :func:`load`.

    Weights of layers, and parameters passed to ``F.conv2d`` and ``F.linear``, become codes of
    ``weight_bits``, with a float32 scale and zero point per output channel (or per kernel). A
    weight that the network also reads elsewhere is stored in float as well. Everything else is
    stored as in ``student.state_dict()``.

    Args:
        student: from :func:`gdfq.quantize_model`, with ranges set.
        path: of the file; replaced if it exists.
        recipe: of the run that trained the student; with it, :func:`load` needs no model.

    Raises:
        InputError: see :func:`packed_copy`, or the file cannot be written.
    """
    raw = to_bytes(student, recipe)
    try:
        write_file(Path(path), raw)
    except OSError as error:
        raise InputError(f"path: cannot write {path}: {error.strerror}") from error


def to_bytes(student: QuantizedModel, recipe: Recipe | None = None) -> bytes:
    """Return the content of the file that :func:`save` writes."""
    packed = packed_copy(student)
    modules = packed.named_modules(remove_duplicate=False)
    calls = {p: m for p, m in modules if isinstance(m, PackedCall)}
    layers: dict[str, Any] = {**_layers(packed), **calls}
    header = Header(
        layers={p: layer.stored for p, layer in layers.items()},
        acts={p: _act_facts(act) for p, act in _acts(packed).items()},
        computed={
            p: ComputedFacts(
                weight_bits=m.weight_bits,
                zero_in_range=m.zero_in_range,
                kernel_ranges=m.dynamic_range,
            )
            for p, m in _computed(packed).items()
        },
        recipe=None if recipe is None else recipe.to_toml(),
    )
    keys = _keys(header)
    state, seen = {}, set()
    for name, value in packed.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # write a shared tensor once
            seen.add(id(value))
            state[keys.get(name, name)] = value.detach().contiguous()
    return tensors.save(state, metadata={KEY: json.dumps(header.model_dump())})


def _keys(header: Header) -> dict[str, str]:
    """Return the keys in the file of tensors that have another name in the student."""
    return {f"{path}.inv_scale": f"{path}.scale" for path in header.layers}


def check_student(student: Any) -> None:
    """Raise InputError unless ``student`` has all ranges set and finite weights."""
    if not isinstance(student, QuantizedModel):
        raise InputError(
            f"student: must come from gdfq.quantize_model, got {type(student).__name__}"
        )
    for path, act in _acts(student).items():
        if not act.has_range:
            raise InputError(
                f"student: the activation {path} has no range yet; train or calibrate it first"
            )
    for path, layer in _layers(student).items():
        weight = layer._parameters.get("weight")
        if weight is not None and not weight.isfinite().all():
            raise InputError(f"student: the weight of {path} is not finite")
    for path, (_, called) in weights_of_calls(student).items():
        if not called.isfinite().all():
            raise InputError(f"student: the weight of {path} is not finite")


def _act_facts(act: QAct) -> ActFacts:
    return ActFacts(
        act_bits=act.act_bits,
        act=act.act,
        zero_in_range=act.zero_in_range,
        dynamic_range=act.dynamic_range,
    )


def _layers(model: nn.Module) -> dict[str, QConv2d | QLinear]:
    return {p: m for p, m in model.named_modules() if isinstance(m, (QConv2d, QLinear))}


def weights_of_calls(model: QuantizedModel) -> dict[str, tuple[WeightQuantizer, Tensor]]:
    """Return quantizer and weight, by path, of parameters passed to functions.

    Weights that the network computes first are not included.
    """
    calls = {}
    for node in model.graph.nodes:
        if node.op != "call_module" or len(node.args) != 1:
            continue
        quantizer, source = model.get_submodule(str(node.target)), node.args[0]
        if isinstance(quantizer, WeightQuantizer) and source.op == "get_attr":
            weight = attrgetter(str(source.target))(model)
            if weight.dim() > 1:
                calls[str(node.target)] = quantizer, weight
    return calls


def read_weights(model: QuantizedModel) -> dict[nn.Module, str]:
    """Return modules, with paths, whose weight is also read directly (``self.fc.weight.mean()``).

    Such a reader sees the float weight, as in the teacher.
    """
    reads = [str(node.target) for node in model.graph.nodes if node.op == "get_attr"]
    paths = [read.removesuffix(".weight") for read in reads if read.endswith(".weight")]
    return {model.get_submodule(path): path for path in paths}


def _drop_weights_of_calls(model: QuantizedModel) -> None:
    """Call each :class:`PackedCall` without its weight, and delete weights without other users."""
    dropped = []
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not node.args:
            continue
        if isinstance(model.get_submodule(str(node.target)), PackedCall):
            (source,) = node.args
            node.args = ()
            if not source.users:
                dropped.append(attrgetter(str(source.target))(model))
                model.graph.erase_node(source)
    used = set()
    for node in model.graph.nodes:
        if node.op == "get_attr":
            used.add(id(attrgetter(str(node.target))(model)))
        elif node.op == "call_module":
            for module in model.get_submodule(str(node.target)).modules():
                values = {**module._parameters, **module._buffers}
                if isinstance(module, PackedWeight):
                    values.pop("weight", None)  # the layer itself uses the codes
                used |= set(map(id, values.values()))
    unused = {id(weight) for weight in dropped} - used
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name in [n for n, value in own.items() if id(value) in unused]:
                del own[name]
    model.recompile()


def _computed(model: nn.Module) -> dict[str, WeightQuantizer]:
    return {
        p: m
        for p, m in model.named_modules()
        if isinstance(m, WeightQuantizer) and not isinstance(m, PackedCall)
    }


def _acts(model: nn.Module) -> dict[str, QAct]:
    return {p: m for p, m in model.named_modules() if isinstance(m, QAct)}


def _replace(model: nn.Module, new: dict[Any, nn.Module]) -> None:
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            model.set_submodule(path, new[module])


# ---- reading ----


def read(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """Read header and tensors of a packed file.

    Raises:
        InputError: the file does not exist, is damaged, or was not written by :func:`save`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"path: {path} is not a safetensors file, or is damaged: {error}"
        ) from error
    if KEY not in metadata:
        raise InputError(
            f"path: {path} is a safetensors file, but not a packed student of gdfq.save"
        )
    try:
        facts = dict(json.loads(metadata[KEY]))
    except (TypeError, ValueError) as error:
        raise InputError(f"path: the header of {path} is damaged: {error}") from error
    return Header.read(facts, f"path: the header of {path} is damaged"), state


def load(path: str | Path, model: nn.Module | None = None) -> QuantizedModel:
    """Load a student written by :func:`save`, in evaluation mode; outputs are equal bit for bit.

    Weights stay packed in memory (:class:`~gdfq.export.packed_layers.PackedConv2d`,
    ``PackedLinear``) and cannot be trained. The teacher's weights are not needed, only its
    architecture, from the recipe in the file or from ``model``.

    Args:
        path: of the file.
        model: the float network that was quantized, with any weights. If that used
            ``leaf_modules`` and the file has no recipe: the result of
            :func:`gdfq.quantize_model`. None builds the network that the recipe names.

    Raises:
        InputError: the file cannot be read or is not a packed student, ``model`` does not fit it,
            or ``model`` is None and the file names no architecture.
    """
    header, state = read(path)
    recipe = header.parsed_recipe()
    if model is None:
        if recipe is None or recipe.teacher.in_memory:
            named = "was saved without a recipe" if recipe is None else "names no network to import"
            raise InputError(f"model: {path} {named}: give the float network it was made of")
        student = build_student(recipe, build_network(recipe))
    elif isinstance(model, QuantizedModel):
        student = copy.deepcopy(model)
    else:
        leaves = [] if recipe is None else recipe.quantization.leaf_modules
        student = quantize_model(model, leaf_modules=leaves)
    _check_layers(student, header, path)
    calls, kept = weights_of_calls(student), read_weights(student)
    new: dict[Any, nn.Module] = {}
    for name, layer in _layers(student).items():
        facts = header.layers[name]
        new[layer] = KINDS[facts.kind](layer, facts, layer.weight.device, layer in kept)
    _replace(student, new)
    made: dict[Any, PackedWeight] = {}
    for name, (quantizer, weight) in calls.items():
        facts = header.layers[name]
        key = id(weight), facts, quantizer.zero_in_range
        if key not in made:
            made[key] = PackedCall(quantizer, facts, weight.device)
        student.set_submodule(name, made[key])
    _drop_weights_of_calls(student)
    for name, quantizer in _computed(student).items():
        quantizer.weight_bits = header.computed[name].weight_bits
        quantizer.zero_in_range = header.computed[name].zero_in_range
        quantizer.dynamic_range = header.computed[name].kernel_ranges
    for name, act in _acts(student).items():
        act.act_bits = header.acts[name].act_bits
        act.zero_in_range = header.acts[name].zero_in_range
        if header.acts[name].dynamic_range:
            act.use_dynamic_range()
        elif act.dynamic_range:
            raise InputError(
                f"model: does not fit {path}: {name} has dynamic ranges in the model, "
                "and a stored one in the file"
            )
    _load_state(student, state, _keys(header), path)
    if any(facts.channels_last for facts in header.layers.values()):
        student.to(memory_format=torch.channels_last)
    return student.eval()


def _check_layers(student: QuantizedModel, header: Header, path: str | Path) -> None:
    layers = {p: (kind_of(m), tuple(m.weight.shape)) for p, m in _layers(student).items()}
    called = weights_of_calls(student)
    layers |= {p: (kind_of(q), tuple(weight.shape)) for p, (q, weight) in called.items()}
    stored = {p: (f.kind, tuple(f.shape)) for p, f in header.layers.items()}
    layers |= {p: ("call", ()) for p in _computed(student) if p not in called}
    stored |= dict.fromkeys(header.computed, ("call", ()))
    acts = {p: q.act for p, q in _acts(student).items()}
    wanted = {p: f.act for p, f in header.acts.items()}
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ((layers, stored), (acts, wanted))
    for have, need in pairs:
        for name in [*need, *have]:
            if have.get(name) != need.get(name):
                raise InputError(
                    f"model: does not fit {path}: {name} is {_say(have.get(name))} in the model "
                    f"and {_say(need.get(name))} in the file"
                )


def _say(what: Any) -> str:
    return "not quantized" if what is None else " ".join(map(str, what)) if isinstance(
        what, tuple
    ) else str(what)  # fmt: skip


def _load_state(
    student: nn.Module, state: dict[str, Tensor], keys: dict[str, str], path: str | Path
) -> None:
    names = student.state_dict(keep_vars=True)
    own = {keys.get(name, name): value for name, value in names.items()}
    loaded = {id(own[name]) for name in state if name in own}
    missing = [name for name, value in own.items() if id(value) not in loaded]
    unknown = [name for name in state if name not in own]
    wrong = [
        name
        for name in state
        if name in own
        and (own[name].shape != state[name].shape or own[name].dtype != state[name].dtype)
    ]
    for found, problem in (
        (missing, "is missing in it"),
        (unknown, "is not in the network"),
        (wrong, "has another shape or dtype than in the network"),
    ):
        if found:
            raise InputError(f"model: does not fit {path}: {found[0]} {problem}")
    values = {name: state[keys.get(name, name)] for name in names if keys.get(name, name) in state}
    student.load_state_dict(values, strict=False)
