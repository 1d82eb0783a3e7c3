"""A sweep's file: variants of a recipe, each of which is run with every seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import ConfigDict, Field

from gdfq.errors import InputError
from gdfq.ops._checks import check_choice
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.files import parse_toml, read_text
from gdfq.recipes.schema import check_key, fields
from gdfq.settings import Settings

_NAME = r"[A-Za-z0-9][\w.=+-]*"
# One teacher, and a seed of its own for each run: or there would be nothing to compare.
_SAME_FOR_ALL = {key for section, key, _ in fields() if section in ("", "teacher")}
_FIELDS = {key for _, key, _ in fields()} | {"bits"}


class _Variant(Settings):
    """A ``[[variant]]`` table; all else in it are a recipe's fields."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=f"^{_NAME}$")


class _File(Settings):
    """The tables of a sweep's file."""

    recipe: str | dict[str, Any]
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(min_length=1)
    reference: str | None = None
    base: dict[str, Any] = Field({})
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field({})
    variant: tuple[_Variant, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A recipe that is run with every seed.

    Attributes:
        name: of the variant, and the beginning of its folders' names.
        table: of the ``[[variant]]`` that it is made from; empty without.
        options: fields in which it differs from the base.
        recipe: the whole.
        bits: which widths it has: what students are chosen among, see :func:`label_of_bits`.
    """

    name: str
    table: str
    options: dict[str, Any]
    recipe: Recipe
    bits: str


@dataclass(frozen=True)
class PlannedRun:
    """A variant with a seed; ``recipe`` is what is run, in the folder ``name``."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """The variant's, with the seed."""
        return self.variant.recipe.with_options({"seed": self.seed})


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep's file says.

    Attributes:
        source: the file's name, for messages.
        recipe: which the variants are of, ``[base]`` included.
        seeds: of each variant.
        variants: in the file's order, the grid's last key fastest, its tables within a point.
        references: by variant, the one that its results are compared with, seed by seed.
        text: a file that says the same and needs no other one.
    """

    source: str
    recipe: Recipe
    seeds: tuple[int, ...]
    variants: list[Variant]
    references: dict[str, str]
    text: str

    @property
    def runs(self) -> list[PlannedRun]:
        """All variants with the first seed, with the second, and so on."""
        return [PlannedRun(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def groups(self) -> dict[str, list[Variant]]:
        """The variants by their bits."""
        groups: dict[str, list[Variant]] = {}
        for variant in self.variants:
            groups.setdefault(variant.bits, []).append(variant)
        return groups


def read_plan(path: Path) -> Plan:
    """Read the sweep that the TOML file at ``path`` describes.

    ``recipe`` is a name or a path (looked for beside the file first), or a table that is the
    recipe; ``seeds`` a list of them. ``[base]`` holds fields for all runs, ``[grid]`` lists of
    values of fields, of which every combination is taken; under a key that is no field's, a list
    of tables of fields that change together. Each ``[[variant]]`` has a ``name`` and fields, and
    is taken at every point of the grid. ``reference`` names what the others are compared with.

    Raises:
        InputError: the file cannot be read, or any of the recipes that it gives is not one; the
            message names file, variant and key.
    """
    tables = parse_toml(read_text(path, "sweep"), "sweep", str(path))
    return make_plan(tables, str(path), path.parent)


def make_plan(tables: dict[str, Any], source: str, folder: Path) -> Plan:
    """Return the sweep that ``tables`` describe; see :func:`read_plan`.

    Args:
        tables: of a sweep's file.
        source: what messages call it.
        folder: where a recipe's path is looked for first.
    """
    file = _File.read(tables, source)
    if len(set(file.seeds)) != len(file.seeds):
        raise InputError(f"{source}: seeds: each must be there once, got {file.seeds}")
    if isinstance(file.recipe, str):
        beside = folder / file.recipe
        found = beside if beside.suffix == ".toml" and beside.is_file() else file.recipe
        try:
            recipe = load_recipe(str(found))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
    else:
        recipe = Recipe.read(file.recipe, f"{source}: recipe")
    base = _with(recipe, file.base, f"{source}: base", {"seed"})
    variants = _variants(file, base, source)
    whole = file.model_dump(exclude={"base"}, exclude_none=True)
    text = {**whole, "recipe": base.model_dump(exclude_none=True)}
    return Plan(
        source, base, file.seeds, variants, _references(file, variants, source), tomli_w.dumps(text)
    )


def label_of_bits(recipe: Recipe) -> str:
    """Return the widths of a recipe's student in short: ``W4A4``, and behind it the exceptions."""
    spec = recipe.quantization
    label = f"W{spec.weight_bits}A{spec.act_bits}"
    if spec.first_last_bits is not None:
        label += f", first and last layer W{spec.first_last_bits}"
    for pattern, widths in recipe.exceptions().items():
        label += f", {pattern} " + "".join(f"{k[0].upper()}{v}" for k, v in widths.items())
    if spec.dynamic_ranges != "none":  # more bits in all, and for no runtime's integers
        label += f", dynamic_ranges = {spec.dynamic_ranges}"
    return label


def _with(recipe: Recipe, options: dict[str, Any], where: str, not_here: set[str]) -> Recipe:
    """Return ``recipe`` with ``options`` in it, paths of files absolute; errors name ``where``."""
    for key in options:
        try:
            check_key(key)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if key == "seed":
            raise InputError(f"{where}: seed: is what seeds = [...] is for")
        if key in not_here:
            raise InputError(
                f"{where}: {key}: must be the same for all runs, so that they can be compared; "
                "it belongs into the recipe or into [base]"
            )
    changed = recipe.with_options(options, where)
    paths = {
        key: str(Path(path).resolve())
        for key in ("weights", "data_path")
        if (path := getattr(changed.teacher, key)) is not None and Path(path).exists()
    }
    return changed.with_options(paths, where)


def _variants(file: _File, base: Recipe, source: str) -> list[Variant]:
    variants: list[Variant] = []
    tables: Sequence[_Variant | None] = file.variant or [None]
    for label, point in _points(file, source):
        for table in tables:
            own = {} if table is None else dict(table.model_extra or {})
            name = "-".join(filter(None, (label, table.name if table else ""))) or "base"
            where = f"{source}: variant {name}"
            for key in own.keys() & point.keys():
                raise InputError(f"{where}: {key}: is in [grid] too")
            options = {**point, **own}
            recipe = _with(base, options, where, _SAME_FOR_ALL)
            for other in variants:
                if other.name == name:
                    raise InputError(f"{where}: there are two of this name")
                if other.recipe == recipe:
                    raise InputError(f"{where}: is the same as {other.name}")
            variants.append(
                Variant(name, table.name if table else "", options, recipe, label_of_bits(recipe))
            )
    return variants


def _points(file: _File, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and fields for each point of the grid; without a grid, one without either."""
    axes: list[list[tuple[str, dict[str, Any]]]] = []
    for key, values in file.grid.items():
        axis = []
        for number, value in enumerate(values, 1):
            if key not in _FIELDS and not isinstance(value, dict):
                raise InputError(
                    f"{source}: grid.{key}: no recipe has such a key, so its values must be tables "
                    f"of fields that change together, got {value!r}"
                )
            options = {key: value} if key in _FIELDS else value
            axis.append((_label(options, number), options))
        axes.append(axis)
    for combination in itertools.product(*axes):
        point: dict[str, Any] = {}
        for _, options in combination:
            for key in options.keys() & point.keys():
                raise InputError(f"{source}: grid: {key} is under two keys")
            point |= options
        label = "-".join(label for label, _ in combination)
        yield re.sub(r"(?<=w\d)-(?=a\d)", "", label), point


def _label(options: dict[str, Any], number: int) -> str:
    """Return a name for these options; ``number`` counts those of the same fields."""
    parts = []
    for key, value in options.items():
        if key in ("weight_bits", "act_bits"):
            parts.append(f"{key[0]}{value}")
        elif isinstance(value, tuple | dict):
            parts.append(f"{key}.{number}")
        else:
            parts.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))


def _references(file: _File, variants: list[Variant], source: str) -> dict[str, str]:
    """Return the reference of each variant.

    That is ``reference``, where a variant is called so; else the first of its bits, made from the
    table of that name where there is one.
    """
    wanted = file.reference
    if wanted is not None:
        tables = [variant.table for variant in variants if variant.table]
        names = dict.fromkeys([*tables, *(variant.name for variant in variants)])
        check_choice(f"{source}: reference", wanted, [*names])
    if any(variant.name == wanted for variant in variants):
        return {variant.name: str(wanted) for variant in variants}
    references = {}
    for variant in variants:
        alike = [other for other in variants if other.bits == variant.bits]
        named = [other for other in alike if other.table == wanted]
        references[variant.name] = (named or alike)[0].name
    return references
