"""The documents do what they say: their code runs, their commands parse, the site is whole."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import zlib
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch
import typer

import gdfq
from gdfq import functional
from gdfq.cli import app
from gdfq.recipes import load_recipe
from gdfq.recipes.files import parse_recipe, tomllib
from gdfq.recipes.schema import Recipe, fields
from gdfq.sweeps.plan import make_plan
from gdfq.training.parts import PARTS
from gdfq.training.parts.clipping import Clipping
from tests.helpers.documents import ROOT, blocks, commands, pages

FILE = re.compile(r"`((?:csrc|gdfq|tests|benchmarks)/[\w/.]+|CMakeLists.txt|docs/parts.md)`")
LANGUAGES = {"python", "console", "toml", "text", "cpp"}
ALL = {str(page.relative_to(ROOT)): blocks(page) for page in pages()}
EVERY = [block for found in ALL.values() for block in found]
NOT_RUN = Counter(
    {
        # tests/project/test_readme.py runs them, with a stand-in for weights that are downloaded.
        "not run, tests/project/test_readme.py does": 2,
    }
)


with_python = [p for p, found in ALL.items() if any(b.language == "python" for b in found)]


# ---- code ----


def test_every_block_says_what_it_is():
    assert [b.where for b in EVERY if b.language not in LANGUAGES] == []
    shells = [b for b in EVERY if b.language != "console" and b.language != "python"]
    assert [
        b.where for b in shells if re.search(r"^\s*gdfq \w", b.code, re.M) and "[" not in b.code
    ] == []


def test_only_these_blocks_are_not_run():
    markers = (b.markers.get("test") for b in EVERY if b.language == "python")
    assert Counter(m for m in markers if m and m != "needs a GPU") == NOT_RUN


@pytest.mark.parametrize("page", with_python)
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in ALL[page]:
            if "before" in block.markers:
                exec(compile(block.markers["before"], f"{block.where}, before", "exec"), namespace)
            if block.language != "python" or "quoted" in block.markers:
                continue
            test = block.markers.get("test", "")
            if test.startswith("not run") or (
                test == "needs a GPU" and not torch.cuda.is_available()
            ):
                continue
            # Behind so many empty lines that a traceback names the page's line.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(ROOT / page), "exec"), namespace)


@pytest.mark.parametrize(
    "block", [b for b in EVERY if "quoted" in b.markers], ids=lambda b: b.where
)
def test_quoted(block):
    text = (ROOT / block.markers["quoted"]).read_text(encoding="utf-8")
    for part in block.code.split("...\n"):
        assert part.strip("\n") in text


@pytest.mark.parametrize("block", [b for b in EVERY if b.language == "toml"], ids=lambda b: b.where)
def test_toml(block):
    tables = tomllib.loads(block.code)
    if "seeds" in tables:
        make_plan(tables, block.where, ROOT)
    elif "name" in tables:
        parse_recipe(block.code, block.where)
    else:
        least = {"name": "least", "teacher": {"model": "gdfq:resnet20"}}
        Recipe.model_validate({**least, **tables})


every_command = [
    pytest.param(arguments, id=f"{b.where} {' '.join(arguments)}")
    for b in EVERY
    if b.language == "console"
    for arguments in commands(b)
]


@pytest.mark.parametrize("arguments", every_command)
def test_command(arguments):
    program = typer.main.get_command(app)
    context = program.make_context("gdfq", list(arguments), obj=gdfq.distributed.World())
    name, command, rest = program.resolve_command(context, list(arguments))
    given = command.make_context(name, list(rest), parent=context).params
    recipe = given.get("recipe")
    if name in ("quantize", "suggest-bits") and recipe and not recipe.endswith(".toml"):
        keys = {key for _, key, _ in fields()} - {"bits"}
        chosen = {k: v for k, v in given.items() if k in keys and v not in (None, (), [])}
        load_recipe(recipe).with_options(chosen)
    if name == "recipes" and rest:
        load_recipe(rest[0])


def test_commands_are_found():
    assert len(every_command) > 30


# ---- what is said of the program ----


def patterns():
    """Of every message in the sources, a pattern of what it can become."""
    for path in (ROOT / "gdfq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value), len(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else None for p in node.values]
                literal = sum(len(part) for part in parts if part)
                yield "".join(".+" if p is None else re.escape(p) for p in parts), literal


def test_messages_of_the_faq_are_the_programs():
    known = [re.compile(p, re.S) for p, literal in patterns() if literal >= 18]
    messages = [b for b in ALL["docs/faq.md"] if b.info == 'title="message"']
    assert len(messages) > 40
    unknown = [
        f"{block.where}: {block.code.strip()}"
        for block in messages
        if not any(pattern.fullmatch(block.code.strip()) for pattern in known)
    ]
    assert unknown == []


def signs_of(part):
    """Return a pattern of what names a part: its class or one of its settings."""
    return "|".join([part.__name__, *part.settings_class.model_fields])


@pytest.mark.parametrize(
    ("page", "name", "sign", "signs"),
    [
        ("add-an-operator", "quantize_codes", "quantize_codes", functional.__all__),
        ("add-a-part", "clipping", signs_of(Clipping), [signs_of(part) for part in PARTS]),
    ],
)
def test_page_names_every_file(page, name, sign, signs):
    """What lists most operators (or parts), or has this one's name, belongs to one."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = "\n".join(re.findall(r"^\| `.*", text, re.M))
    named = {file.replace(name, "NAME") for file in FILE.findall(rows)}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "gdfq", "tests", "benchmarks", "docs/api", "docs/parts.md",
         "CMakeLists.txt"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    if not tracked:
        pytest.skip("not a git checkout: which files there are is unknown")
    having = set()
    for path in tracked:
        if name in path:
            having.add(path.replace(name, "NAME"))
        elif path.endswith((".py", ".cpp", ".h", ".txt", ".md", ".toml")) and (
            not path.startswith(("benchmarks/results", "benchmarks/sweeps"))
            and (ROOT / path).exists()
        ):
            text = (ROOT / path).read_text(encoding="utf-8", errors="ignore")
            listed = sum(re.search(rf"\b({each})", text) is not None for each in signs)
            if re.search(rf"\b({sign})", text) and listed > len(signs) / 2:
                having.add(path)
    assert named == having


# ---- links ----


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        path, _, anchor = unquote(link).partition("#")
        if path.startswith("http"):
            continue
        target = ROOT / (path or page)
        assert target.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page}: {link}"


# ---- the site ----


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'gdfq[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loads(HTMLParser):
    """What a page loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(attrs.get("src"))
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(attrs.get("href"))


def test_site_needs_no_network(site):
    html = sorted(site.rglob("*.html"))
    assert len(html) >= 25
    for page in html:
        loaded = [url for url in Loads(page.read_text(encoding="utf-8")).found if url]
        assert loaded
        for url in loaded:
            assert not re.match(r"(https?:)?//", url), f"{page}: {url}"
            if page.name != "404.html" and not url.startswith("data:"):
                assert (page.parent / unquote(url.split("?")[0].split("#")[0])).exists(), url
    for sheet in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*", sheet.read_text())
        assert outside == [], sheet


def test_site_has_every_public_name(site):
    known = set(inventory(site / "objects.inv"))
    for module in (gdfq, gdfq.functional, gdfq.losses, gdfq.nn, gdfq.models, gdfq.export,
                   gdfq.sources):  # fmt: skip
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                assert f"{module.__name__}.{name}" in known


def inventory(path):
    """The names in an inventory of Sphinx's format."""
    content = path.read_bytes().split(b"\n", 4)[4]
    return [line.split(" ")[0] for line in zlib.decompress(content).decode().splitlines()]


def test_site_has_every_command_and_field(site):
    page = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f"gdfq {name}" in page
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("-") and flag != "--help":
                    assert re.search(rf"{re.escape(flag)}[ <]", page), f"{name} {flag}"
    page = (site / "recipes.html").read_text(encoding="utf-8")
    for _, key, definition in fields():
        assert f"<code>{key}</code>" in page
        assert definition.description


def test_site_explains_every_command(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert "<td></td>\n<td></td>" not in text  # an option without help
