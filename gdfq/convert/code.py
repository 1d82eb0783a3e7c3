"""Code generation for a student's graph."""

from __future__ import annotations

import json
import keyword
from typing import Any

from torch import fx


class Code(fx.CodeGen):
    """Code generator that reads names which are not identifiers by ``getattr``.

    ``fx.CodeGen`` writes ``self.heads.class`` for ``heads.class``, a syntax error.
    """

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **options: Any) -> Any:
        namespace.create_name(root_module, None)  # reserve the name
        for node in nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = _Path(node.target)
        return super()._gen_python_code(nodes, root_module, namespace, **options)


class _Path(str):
    __slots__ = ()

    def split(self, *args: Any, **options: Any) -> list[Any]:
        return [_Name(name) for name in super().split(*args, **options)]


class _Name(str):
    __slots__ = ()

    def isidentifier(self) -> bool:
        # Python normalizes identifiers beyond ASCII, which changes the name.
        return self.isascii() and super().isidentifier() and not keyword.iskeyword(self)

    def __format__(self, spec: str) -> str:
        return json.dumps(str(self), ensure_ascii=False)[1:-1]  # between quotes
