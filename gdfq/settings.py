"""Settings, each declared once: a frozen class whose fields hold type, bounds, default and text.

::

    class Average(Settings):
        decay: float = Field(0.0, ge=0, lt=1, description="decay of the average; 0 keeps none")

    Average(decay=1)  # InputError: decay: must be in [0, 1), got 1

The same line is checked, with the same words, as a Python argument, as a key of a TOML file and as
an option of the command line: see :meth:`Settings.read`. Types are not converted, except that a
float takes an int, a tuple any sequence but a string, and that NumPy's numbers and arrays are
Python's; tensors, fractions and decimals are no numbers here. Floats are finite. A rule between
settings is a ``@model_validator(mode="after")`` that raises an ``InputError`` whose message starts
with a field's name, or is about all of them.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from gdfq.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Base of classes whose fields are settings.

    Raises:
        InputError: a setting is unknown, missing or not allowed, or two contradict each other. The
            message names the setting, what is allowed and what was given.
    """

    none: ClassVar[str] = "none"

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_explain(error, type(self), values)) from error

    # Settings within settings are then validated in place, which keeps their names in errors.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise InputError(
            f"{name}: settings are frozen; model_copy(update={{{name!r}: {shown(value)}}}) returns "
            "changed ones"
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return these settings with those of ``update``, checked as any.

        Args:
            update: settings by name.
            deep: has no effect, as settings are frozen.

        Raises:
            InputError: see the class.
        """
        return type(self)(**{**dict(self), **(update or {})})

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """List the fields in the docstring."""
        fields = cls.model_fields.items()
        rows = [f"{name}: {field.description}" for name, field in fields if field.description]
        text = inspect.cleandoc(cls.__doc__ or "")
        if rows:
            cls.__doc__ = "\n    ".join([f"{text}\n\nArgs:", *rows]) + "\n"

    @classmethod
    def read(cls, tables: Mapping[str, Any], source: str) -> Self:
        """Return the settings in ``tables``, as a TOML file has them.

        Raises:
            InputError: see the class; the message starts with ``source``.
        """
        try:
            return cls(**tables)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        return _plain(values)

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not at their defaults."""
        fields = type(self).model_fields
        return {name: value for name, value in self if value != fields[name].default}

    __str__ = BaseModel.__repr__

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return self.changed().items()

    def describe(self) -> str:
        """Return :meth:`changed` as ``name=value, ...``, or :attr:`none` where there are none."""
        return ", ".join(f"{name}={value!r}" for name, value in self.changed().items()) or self.none


def with_fields(function: Callable[..., Any], settings: type[Settings]) -> inspect.Signature:
    """Return the signature of ``function``, whose ``**keywords`` are fields of ``settings``.

    Each field that is not an argument already is listed by name, with its default.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {parameter.name for parameter in own}
    more = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_unconstrained(field.annotation),
        )
        for name, field in settings.model_fields.items()
        if name not in names
    ]
    return signature.replace(parameters=[*own, *more])


def _unconstrained(annotation: Any) -> Any:
    """Return an annotation without the constraints in it: ``int | None``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _unconstrained(arguments[0])
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_unconstrained, arguments))
    if origin is tuple:
        return tuple[_unconstrained(arguments[0]), ...]  # type: ignore[misc]
    return annotation


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return the argument ``name``, checked as a field of the annotation ``kind`` would be.

    Raises:
        InputError: the value is not allowed.
    """
    try:
        return _adapter(kind).validate_python(_plain(value))
    except ValidationError as error:
        raise InputError(f"{name}: must be {allowed(kind)}, got {shown(value)}") from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=Settings.model_config)


def allowed(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """Return what a field may hold, in words: ``"an int from 2 to 8"``.

    Args:
        annotation: the field's, ``FieldInfo.annotation``.
        constraints: the field's, ``FieldInfo.metadata``.
    """
    bounds = {
        bound: getattr(constraint, bound)
        for constraint in constraints
        for bound in ("gt", "ge", "lt", "le", "min_length", "pattern")
        if getattr(constraint, bound, None) is not None
    }
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *more = arguments
        return allowed(inner, [c for m in more for c in getattr(m, "metadata", [m])])
    if origin is Literal:
        return one_of(arguments)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return " or ".join(allowed(kind, constraints) for kind in kinds)
    if origin is tuple:
        some = "a non-empty list" if "min_length" in bounds else "a list"
        return f"{some}, each entry {allowed(arguments[0])}"
    if annotation is bool:
        return "true or false"
    if annotation is int:
        if bounds.keys() == {"ge", "lt"}:
            bounds = {"ge": bounds["ge"], "le": bounds["lt"] - 1}
        if bounds.keys() == {"ge", "le"}:
            return f"an int from {bounds['ge']} to {bounds['le']}"
        return f"an int {_interval(bounds)}".rstrip()
    if annotation is float:
        if not bounds:
            return "a finite number"
        bounded = {"lt", "le"} & bounds.keys()
        return f"a number {_interval(bounds)}{'' if bounded else ' and finite'}"
    if annotation is str:
        return f"a string like {bounds['pattern']}" if "pattern" in bounds else "a string"
    return "a table"


def one_of(choices: Sequence[Any]) -> str:
    """Return the choices in words: ``"one of 'a', 'b' or 'c'"``."""
    *others, last = map(repr, choices)
    return f"one of {', '.join(others)} or {last}" if others else last


def _interval(bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if high is None:
        return "" if low is None else f">{'=' if 'ge' in bounds else ''} {low}"
    if low is None:
        return f"<{'=' if 'le' in bounds else ''} {high}"
    return f"in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"


def _plain(value: Any) -> Any:
    """Return ``value`` with NumPy's numbers as Python's and sequences as tuples.

    What only converts to a number (a tensor, a fraction) becomes ``...``, which no setting may be.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = float(value) if isinstance(value, np.longdouble) else value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_plain(entry) for entry in value)
    return ... if hasattr(value, "__float__") and not isinstance(value, int | float) else value


def _explain(error: ValidationError, schema: type[Settings], given: Any) -> str:
    return "; ".join(dict.fromkeys(_explain_one(e, schema, given) for e in error.errors()))


def _explain_one(error: Any, schema: type[Settings], given: Any) -> str:
    """Return what is wrong with one setting, named by its path in ``schema``."""
    kind: Any = schema
    constraints: Sequence[Any] = ()
    path: list[str] = []
    missing = error["type"] == "missing"
    for part in error["loc"]:
        field = _field(kind, part)
        if field is None:  # the entry of a list, named by the whole, or an unknown key
            break
        kind, constraints = field
        path.append(str(part))
        if not missing:
            given = given[part] if isinstance(given, Mapping | Sequence) else getattr(given, part)
    name = ".".join(path)
    if error["loc"][len(path) :] == ("[key]",):
        return f"{'.'.join(path[:-1])}: names must be strings, got {shown(error['input'])}"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_bare(kind).model_fields)
        return f"{'.'.join([*path, str(error['loc'][-1])])}: unknown key; allowed are {known}"
    if missing:
        return f"{name}: missing; must be {allowed(kind, constraints)}"
    if error["type"] == "value_error":  # of a rule
        message = str(error["ctx"]["error"])
        names_field = re.split("[.:]", message)[0] in _bare(kind).model_fields
        return ("." if names_field and path else ": " if path else "").join([name, message])
    return f"{name}: must be {allowed(kind, constraints)}, got {shown(given)}"


def _field(kind: Any, part: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return annotation and constraints of what errors name ``part`` in ``kind``."""
    kind = _bare(kind)
    if get_origin(kind) is dict:
        return get_args(kind)[1], ()
    if get_origin(kind) is tuple and _is_table(get_args(kind)[0]):
        return get_args(kind)[0], ()
    if _is_table(kind) and part in kind.model_fields:
        return kind.model_fields[part].annotation, kind.model_fields[part].metadata
    return None


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _bare(kind: Any) -> Any:
    """Return an annotation without its constraints and without None."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return _bare(next(k for k in get_args(kind) if k is not type(None)))
    return kind


def shown(given: Any) -> str:
    """Return ``given`` for a line of text."""
    try:
        text = repr(given)
    except ValueError:  # an int has more digits than Python writes
        text = ""
    if text and len(text) <= 100 and "\n" not in text:
        return text
    return "a very large int" if isinstance(given, int) else f"a {type(given).__name__}"
