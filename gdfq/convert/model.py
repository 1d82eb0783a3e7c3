"""The class of converted networks."""

from __future__ import annotations

import copy
import textwrap
from typing import Any

from torch import fx, nn

from gdfq.convert.coverage import CoverageReport
from gdfq.errors import InputError
from gdfq.nn import QAct
from gdfq.nn.weight import QuantizedWeight


class QuantizedModel(fx.GraphModule):
    """A converted network: the teacher's module tree, executed by the traced graph.

    ``coverage`` is its :class:`~gdfq.convert.coverage.CoverageReport`. ``state_dict`` has all names
    of the teacher's, plus the ranges. Copies and pickles like any module.
    """

    coverage: CoverageReport

    def __init__(self, root: nn.Module, graph: fx.Graph, coverage: CoverageReport) -> None:
        super().__init__(root, graph, class_name=type(self).__name__)
        # GraphModule keeps only modules that the graph calls; the whole tree keeps all names.
        self._modules = root._modules
        self._parameters = root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.coverage = coverage
        self.training = root.training

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of a student, with or without stored weight ranges.

        Weight ranges in the state are stored; without them, ranges are the weights' minima and
        maxima.

        Raises:
            InputError: the state does not fit; one line says why.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            problem = str(error).splitlines()[-1].strip()
            raise InputError(
                "state_dict: does not fit the student: "
                + (self._other_ranges(state_dict) or textwrap.shorten(problem, 300))
            ) from error

    def _other_ranges(self, state: Any) -> str | None:
        """Describe the first range that is dynamic in only one of student and ``state``."""
        for name, module in self.named_modules():
            dynamic = isinstance(module, QAct) and module.dynamic_range
            stored = f"{name}.hi" in state or f"{name}.weight_hi" in state
            if isinstance(module, QAct) and not dynamic and not stored:
                return (
                    f"it has no range of {name}: it is of the float network (strict=False loads "
                    "the weights alone), or of a student that quantize_model made with "
                    "dynamic_ranges='act' or 'both'"
                )
            if isinstance(module, QuantizedWeight):
                dynamic = module.dynamic_range
            if dynamic and stored:
                return (
                    f"it has a range of {name}, whose ranges are dynamic: quantize_model "
                    "made this student with dynamic_ranges, and the other without"
                )
        return None

    def _tree(self) -> nn.Module:
        root = nn.Module()
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(root, name, self.__dict__[name])
        root.training = self.training
        return root

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModel:
        root, graph = copy.deepcopy((self._tree(), self.graph), memo)
        return QuantizedModel(root, graph, self.coverage)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._tree(), self.coverage, super().__reduce__())


def _rebuild(root: nn.Module, coverage: CoverageReport, reduced: Any) -> QuantizedModel:
    make, arguments = reduced
    return QuantizedModel(root, make(*arguments).graph, coverage)
