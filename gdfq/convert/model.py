"""The student."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from gdfq.coverage import CoverageReport


class QuantizedModel(fx.GraphModule):
    """A converted network: the teacher's module tree, run by the traced graph.

    ``coverage`` is its :class:`~gdfq.coverage.CoverageReport`. ``state_dict`` has every name of
    the teacher's, plus the activation ranges. Copies and pickles like any module.
    """

    coverage: CoverageReport

    def __init__(self, root: nn.Module, graph: fx.Graph, coverage: CoverageReport) -> None:
        super().__init__(root, graph, class_name=type(self).__name__)
        # GraphModule keeps what the graph calls; the whole tree keeps every name.
        self._modules = root._modules
        self._parameters = root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.coverage = coverage
        self.training = root.training

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
