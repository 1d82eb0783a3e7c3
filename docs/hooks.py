"""Generate the site's contents beyond this folder's pages: mkdocs calls the functions ``on_...``.

Pages of commands and recipe fields come from the program and cannot go stale; the
changelog, its neighbours and the tables of `benchmarks/results` are shown in place;
docstrings, Google-style sections with reStructuredText, become Markdown.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import griffe
import typer
from mkdocs.structure.files import File, Files

from gdfq.cli import app
from gdfq.convert.bits import LayerBits
from gdfq.recipes import load_recipe, recipe_names
from gdfq.recipes.schema import Recipe, fields
from gdfq.settings import Settings, allowed

ROOT = Path(__file__).parents[1]
WORKER = "https://unpkg.com/iframe-worker/shim"

# ---- the command line ----


def commands() -> str:
    """Return all commands with their arguments and options, as Markdown."""
    callbacks = {c.callback for c in app.registered_commands}
    parts = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        callback = next(c for c in callbacks if c and c.__name__ == name.replace("-", "_"))
        annotations = {
            key: parameter.annotation
            for key, parameter in inspect.signature(callback, eval_str=True).parameters.items()
        }
        parts.append(_command(name, command, annotations))
    return "\n\n".join(parts)


def _command(name: str, command: Any, annotations: dict[str, Any]) -> str:
    own: list[Any] = [p for p in command.params if p.name != "help"]
    arguments = [p for p in own if not p.opts[0].startswith("-")]
    panels: dict[str, list[Any]] = {}
    for option in own:
        if option not in arguments:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(option)
    usage = " ".join(_capital(p.name) if p.required else f"[{_capital(p.name)}]" for p in arguments)
    lines = [f"## gdfq {name}", inspect.cleandoc(command.help or "")]
    lines.append(f"```text\ngdfq {name} [OPTIONS] {usage}".rstrip() + "\n```")
    for panel, options in panels.items():
        if not panel:
            lines.append(_options_table([*arguments, *options], annotations))
        elif name != "quantize":
            lines.append(
                "The fields of a recipe are options too; see [gdfq quantize](#gdfq-quantize)."
            )
            break
        else:
            lines.append(f"### {panel} {{: #{_slug(name, panel)} }}")
            lines.append(_options_table(options, annotations))
    return "\n\n".join(lines)


def _options_table(options: list[Any], annotations: dict[str, Any]) -> str:
    rows = ["| | |", "|---|---|"]
    for option in options:
        if not option.opts[0].startswith("-"):
            shown = f"`{_capital(option.name)}`"
        elif option.is_flag:
            shown = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
        else:
            shown = f"`{option.opts[0]} {_kind(annotations.get(option.name))}`"
        help_text = _cell(option.help or "")
        if option.required:
            help_text += " (required)" if option.opts[0].startswith("-") else ""
        elif option.default not in (None, False, (), []) and option.show_default:
            default = option.default
            help_text += f" (default: {'yes' if default is True else f'`{default}`'})"
        rows.append(f"| {shown} | {help_text} |")
    return "\n".join(rows)


def _kind(annotation: Any) -> str:
    """Return the placeholder for a value of this type on the command line."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is list or type(None) in get_args(annotation):
        return _kind(get_args(annotation)[0])
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _capital(name: str) -> str:
    return name.upper().replace("_", "-")


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z]+", "-", " ".join(words).lower())


def _cell(text: str) -> str:
    # Patterns become code, or their asterisks would be emphasis; options become code too.
    text = re.sub(r"'(\S*[*=]\S*)'", r"`\1`", text)
    text = re.sub(r"(?<![\w`-])(--[a-z-]+)", r"`\1`", text)
    return text.replace("|", "\\|")


# ---- recipes ----


def recipe_fields() -> str:
    """Return every field of a recipe by section, as Markdown."""
    sections: dict[str, list[str]] = {}
    for section, key, definition in fields():
        default = "" if definition.is_required() else _toml(definition.default)
        told = "has to be given" if definition.is_required() else default and f"`{default}`"
        words = _cell(allowed(definition.annotation, definition.metadata))
        description = _cell(definition.description or "")
        sections.setdefault(section, []).append(f"| `{key}` | {words} | {told} | {description} |")
    header = "| field | allowed | default | |\n|---|---|---|---|\n"
    parts = []
    for name, rows in sections.items():
        title, about = "### At the top", ""
        if name:
            told = (inspect.getdoc(Recipe.model_fields[name].annotation) or "").split("\n\n")[0]
            # Names in a section's own text are code here.
            about = re.sub(r"\b(gdfq\.\w[\w.]*\w)", r"`\1`", told)
            title = f"### [{name}]"
        parts.append(f"{title}\n\n{about}\n\n{header}" + "\n".join(rows))
    keys = ", ".join(f"`{key}`" for key in LayerBits.model_fields)
    parts.append(
        "### [bits]\n\nExceptions by glob pattern of layers' names, each a table with one or both "
        f"of {keys}: 2 to 8. The last pattern that matches wins."
    )
    return "\n\n".join(parts)


def recipes() -> str:
    """Return the package's recipes as a table."""
    rows = ["| recipe | |", "|---|---|"]
    for name in recipe_names():
        rows.append(f"| `{name}` | {_cell(load_recipe(name).description)} |")
    return "\n".join(rows)


def _toml(value: Any) -> str:
    if value is None:
        return ""
    value = list(value) if isinstance(value, tuple) else value
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


# ---- modules ----


def members(module: str) -> str:
    """A directive for each public name of a module, in the order of its ``__all__``."""
    names = importlib.import_module(module).__all__
    return "\n\n".join(f"::: {module}.{name}" for name in names)


# ---- the README's and the results' parts ----


def part_of_readme(name: str) -> str:
    """Return the generated part of the README between the markers ``name``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]


def examples() -> str:
    """Return the example programs' sources."""
    parts = []
    for path in sorted((ROOT / "examples").iterdir()):
        language = {".py": "python", ".sh": "sh"}.get(path.suffix)
        if language is not None:
            code = path.read_text(encoding="utf-8").rstrip()
            parts.append(f"## {path.name}\n\n````{language}\n{code}\n````")
    return "\n\n".join(parts)


def citation() -> str:
    """Return CITATION.cff."""
    return f"````yaml\n{(ROOT / 'CITATION.cff').read_text(encoding='utf-8').rstrip()}\n````"


INSERTED: dict[str, Callable[[], str]] = {
    "citation": citation,
    "examples": examples,
    "functional": lambda: members("gdfq.functional"),
    "losses": lambda: members("gdfq.losses"),
    "commands": commands,
    "recipe fields": recipe_fields,
    "recipes": recipes,
    "step": lambda: part_of_readme("step"),
}


# Pages at the repository's root, by their place in the site.
AT_THE_TOP = {
    f"{name.lower()}.md": f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")
}


def _shown_from_elsewhere() -> Iterator[tuple[str, Path]]:
    """Yield the site's files from outside this folder, by their place in the site."""
    for uri, name in AT_THE_TOP.items():
        yield uri, ROOT / name
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.[mp][dn]*")):
        yield f"benchmarks/results/{path.name}", path


def on_files(files: Files, config: Any) -> Files:
    """Add pages and pictures from outside this folder."""
    for uri, path in _shown_from_elsewhere():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert generated text, and rewrite links within the repository to links within the site."""
    for name, make in INSERTED.items():
        if f"<!-- insert: {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- insert: {name} -->", make())
    if page.file.src_uri in AT_THE_TOP:
        return markdown.replace("](docs/", "](")
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load the search worker from the site, not from the network."""
    return output.replace(WORKER, "../" * page.url.count("/") + "iframe-worker.js")


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for the 404 page."""
    return output_content.replace(WORKER, "iframe-worker.js")


# ---- docstrings ----

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`(~?)([\w.]+)`")
PARAGRAPH = re.compile(r"^( *)(Source|Shape|Shapes|Gradient|Learned ranges): ", re.M)

RETURNS = re.compile(r"^( *Returns:\n\s+)(?=\S)", re.M)


class PlainDocstrings(griffe.Extension):
    """Turn roles into references, and ``::`` and titled paragraphs into Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            if obj.is_class:
                found = getattr(importlib.import_module(obj.module.path), obj.name, None)
                if isinstance(found, type) and issubclass(found, Settings):
                    obj.docstring.value = found.__doc__ or ""  # with a row for each field
            obj.docstring.value = plain(obj.docstring.value, obj)
            returns = getattr(obj, "returns", None)
            if returns is not None:
                # Griffe would parse the text up to the first colon as the type.
                obj.docstring.value = RETURNS.sub(
                    lambda match: f"{match[1]}{returns}: ", obj.docstring.value
                )


def plain(text: str, obj: griffe.Object) -> str:
    """Return a docstring's text as Markdown; griffe parses the sections."""

    def reference(match: re.Match[str]) -> str:
        short, name = match.groups()
        shown = name.rsplit(".", 1)[-1] if short else name
        target = name
        if not name.startswith("gdfq"):
            target = f"{obj.canonical_path}.{name}"
            with contextlib.suppress(griffe.NameResolutionError):
                target = obj.resolve(name)
        return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

    text = ROLE.sub(reference, text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return PARAGRAPH.sub(r"\1**\2:** ", text)
