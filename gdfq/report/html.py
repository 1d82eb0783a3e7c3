"""Fill templates into HTML files that contain their style and script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gdfq.environment import __version__
from gdfq.report.charts import swatch
from gdfq.report.text import MISSING


def fill(
    template: str,
    *,
    kicker: str,
    title: str,
    lead: str,
    warnings: Sequence[tuple[str, str]],
    sections: Sequence[tuple[str, str]],
    **values: Any,
) -> str:
    """Return the page of ``template``, which extends ``base.html``.

    Args:
        template: its name.
        kicker: what kind of page it is, above the title.
        title: of the page.
        lead: what it is about, in a sentence.
        warnings: what to know first: of which run (or nothing), and a sentence.
        sections: identifier and short title of each.
        values: for the template itself.
    """
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(missing=MISSING, swatch=swatch)
    page = environment.get_template(template).render(
        kicker=kicker,
        title=title,
        lead=lead,
        warnings=warnings,
        sections=sections,
        css=Markup(_file("page.css")),
        js=Markup(_file("page.js")),
        version=__version__,
        **values,
    )
    return page.strip() + "\n"


def _file(name: str) -> str:
    return (resources.files("gdfq.report") / "template" / name).read_text(encoding="utf-8")
