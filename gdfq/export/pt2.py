"""Export to a ``.pt2`` file of ``torch.export``."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export.formulas import FORMULAS
from gdfq.export.packed import check_student, packed_copy
from gdfq.export.packed_layers import ConstantWeight, PackedCall
from gdfq.files import write_file
from gdfq.nn import QConv2d, QLinear
from gdfq.nn.given import one_line


def export_pt2(
    student: QuantizedModel, path: str | Path, images: Tensor, *, decompose: bool = False
) -> None:
    """Write ``student`` as a ``torch.export`` program with a dynamic batch size.

    Args:
        student: from :func:`gdfq.quantize_model` or :func:`gdfq.load`, with ranges set.
        path: of the file; replaced if it exists.
        images: a batch ``(N, C, H, W)``; only shape, dtype and device matter.
        decompose: False keeps this package's operators, so that loading requires gdfq, and weights
            as packed codes. True writes PyTorch operators and quantized weights as floats; the
            file then loads without gdfq.

    Raises:
        InputError: ``student`` is not finished, torch.export cannot export it, or the file cannot
            be written.
    """
    check_student(student)
    network = _with_values(student) if decompose else packed_copy(student)
    network.requires_grad_(False)
    # A batch size of 1 would become a constant; the file keeps the example's whole storage.
    example = torch.zeros((2, *images.shape[1:]), dtype=images.dtype, device=images.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamic = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
            if decompose:
                program = program.run_decompositions(
                    torch.export.default_decompositions() | FORMULAS
                )
    except (RuntimeError, UserError) as error:
        raise InputError(f"student: torch.export cannot export it: {one_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that wrote the file
    try:
        content = io.BytesIO()
        with warnings.catch_warnings():
            # A harmless warning for tensors that are not contiguous, such as channels_last.
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            torch.export.save(program, content)
        write_file(Path(path), content.getvalue())
    except OSError as error:
        raise InputError(f"path: cannot write {path}: {error.strerror}") from error


@torch.no_grad()
def _with_values(student: QuantizedModel) -> QuantizedModel:
    """Return a copy whose layers hold the quantized weights as float constants."""
    plain = copy.deepcopy(student).eval()
    made: dict[nn.Module, nn.Module] = {}
    for path, module in list(plain.named_modules(remove_duplicate=False)):
        if not isinstance(module, (QConv2d, QLinear, PackedCall)):
            continue
        if module not in made:
            if isinstance(module, PackedCall):
                made[module] = ConstantWeight(module)
            else:
                made[module] = _ConstantWeight(module)
        plain.set_submodule(path, made[module])
    return plain


class _ConstantWeight(nn.Module):
    """A quantized layer's forward with the quantized weight as a constant."""

    def __init__(self, layer: QConv2d | QLinear) -> None:
        super().__init__()
        self.register_buffer("weight", layer._quantized_weight().clone())
        self.layer = layer
        layer._parameters.pop("weight", None)
        layer._buffers.clear()  # codes of a packed layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.weight)
