"""What is shown, and where: encodings, terminals, streams that cannot be written, a user's text."""

import io
import os
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.table import Table

import gdfq
from gdfq.cli import _common
from gdfq.runs.console import Output, is_live, make_console, print_line
from gdfq.runs.progress import LiveProgress, PlainProgress, console_progress
from tests.cli.test_cli import RECIPE, SHORT, gdfq_command

NAME = "b\N{LATIN SMALL LETTER U WITH DIAERESIS}[c]h[/b] :cat: [red]\N{HORIZONTAL ELLIPSIS}"


def memory(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def written(stream):
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", NAME),
        ("ascii", NAME.replace("\N{LATIN SMALL LETTER U WITH DIAERESIS}", "\\xfc")[:-1] + "~"),
        ("latin-1", NAME[:-1] + "~"),
    ],
)
def test_text_is_shown_as_it_is_in_any_encoding(encoding, shown):
    stream = memory(encoding)
    console = make_console(Output(stream))
    print_line(console, NAME)
    table = Table(NAME, title=NAME, caption=NAME)
    table.add_row(NAME)
    console.print(table)
    for progress in (LiveProgress(console), PlainProgress(console)):
        progress.on_status(NAME)
        progress.on_warning(NAME)
    progress.on_layers(1)
    progress.on_layer(NAME)
    assert written(stream).count(shown) == 10
    assert ("\N{BOX DRAWINGS LIGHT VERTICAL}" in written(stream)) == (encoding == "utf-8")


def test_a_path_that_is_not_utf_8_is_shown():
    stream = memory("utf-8")
    print_line(make_console(Output(stream)), os.fsdecode(b"b\xfccher"))
    assert written(stream) == "b\\udcfccher\n"


class Full(io.StringIO):
    def __init__(self):
        super().__init__()
        self.tries = 0

    def write(self, text):
        self.tries += 1
        raise OSError(28, "No space left on device")


def test_a_stream_that_fails_is_said_once_and_left_alone():
    said = []
    full = Full()
    output = Output(full, said.append)
    console = make_console(output)
    for _ in range(3):
        print_line(console, "x")
    assert full.tries == 1
    assert [str(error) for error in said] == ["[Errno 28] No space left on device"]
    closed = Output(None, said.append)
    print("x", file=closed)
    closed.flush()
    assert not closed.isatty()
    assert said[1].strerror == "Bad file descriptor"


@pytest.fixture
def terminal():
    """A stream that is a terminal, and a function that reads all that has been written to it."""
    reader, writer = os.openpty()

    def read():
        found = b""
        while select.select([reader], [], [], 0.2)[0]:
            found += os.read(reader, 100_000)
        return found.decode()

    with open(writer, "w", encoding="ascii", errors="strict") as stream:
        yield stream, read
    os.close(reader)


TERMINALS = {
    "plain": ({"TERM": "xterm"}, True),
    "no color": ({"TERM": "xterm", "NO_COLOR": "1"}, True),
    "dumb": ({"TERM": "dumb"}, False),
    "unknown": ({"TERM": "unknown"}, False),
    "said to be none": ({"TERM": "xterm", "TTY_COMPATIBLE": "0"}, False),
    "not interactive": ({"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False),
}


@pytest.mark.parametrize("case", TERMINALS)
def test_a_bar_is_for_terminals_that_can_show_it(case, terminal, monkeypatch):
    variables, live = TERMINALS[case]
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console = make_console(Output(terminal[0]))
    assert is_live(console) == live
    assert isinstance(console_progress(console), LiveProgress if live else PlainProgress)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_file_gets_lines_whatever_is_said_of_colors(monkeypatch, variable):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, "1")
    console = make_console(Output(memory("utf-8")))
    assert isinstance(console_progress(console), PlainProgress)


@pytest.mark.parametrize("columns", [0, 1, 5, 40, 200])
def test_a_bar_in_a_terminal_of_ascii_and_any_width(monkeypatch, terminal, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, read = terminal
    progress = console_progress(make_console(Output(stream)))
    assert isinstance(progress, LiveProgress)
    training = SimpleNamespace(steps=2, warmup_steps=1, batch_size=8)
    trainer = SimpleNamespace(training=training, steps_done=0, describe=lambda: NAME)
    progress.on_start(trainer)
    for trainer.steps_done in (1, 2):
        progress.on_step(trainer, {"generator": 1.0})
    progress.on_stop()
    shown = read()
    assert "b\\xfc[c]h[/b] :cat: [red]~" in shown
    assert ("2/2" in shown) == (columns == 200)


@pytest.mark.parametrize("columns", ["0", "3", "39"])
def test_help_and_tables_are_there_with_few_columns(capsys, monkeypatch, columns):
    for arguments in (["--help"], ["recipes"]):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, err = gdfq_command(capsys, *arguments)
        assert (code, err) == (0, "")
        assert "quantize" in out if arguments == ["--help"] else RECIPE in out


def test_a_table_in_a_narrow_terminal_keeps_its_cells(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "5")
    stream, read = terminal
    monkeypatch.setattr(_common, "console", make_console(Output(stream)))
    table = Table("layer")
    table.add_row("layer1.0.conv1")
    _common.print_table(table)
    assert "layer1.0.conv1" in read()


def test_names_with_brackets_in_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = "run [5][/dim][bold] :cat:"
    code, out, err = gdfq_command(capsys, *SHORT, "--out", folder)
    assert code == 0, err
    assert f"Student: {folder}/student.safetensors" in out
    code, out, _ = gdfq_command(capsys, "inspect", folder)
    assert code == 0
    assert "layer1.0.conv1" in out
    for command in (["evaluate", "[/x]"], ["export", "[/x]"], ["report", "[/x]"]):
        code, _, err = gdfq_command(capsys, *command)
        assert code == 2
        assert "[/x]" in err
        assert len(err.splitlines()) == 1


LOST = "gdfq: cannot write to standard output: {}; what is printed from here on is lost\n"


@pytest.mark.parametrize("command", [["recipes"], ["recipes", RECIPE], ["--version"], ["--help"]])
def test_a_full_disk_is_one_line(capsys, monkeypatch, command):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = gdfq_command(capsys, *command)
    assert code == 1
    assert err == LOST.format("No space left on device")


def test_a_run_whose_output_is_lost_is_whole(capsys, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        code, _, err = gdfq_command(capsys, *SHORT, "--out", tmp_path / "run")
    assert code == 1
    assert err == LOST.format("Broken pipe")
    monkeypatch.undo()
    assert gdfq_command(capsys, "inspect", tmp_path / "run")[0] == 0
    assert gdfq_command(capsys, "quantize", "--resume", tmp_path / "run")[0] == 0


def test_a_process_whose_output_is_lost_ends_without_a_trace(tmp_path):
    environment = {
        **os.environ, "PYTHONPATH": str(Path(gdfq.__file__).parents[1]), "PYTHONIOENCODING": "ascii"
    }  # fmt: skip
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gdfq", "recipes"], stdout=full, stderr=subprocess.PIPE,
            env=environment, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == LOST.format("No space left on device")


def test_ctrl_c_in_a_command_is_one_line(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["gdfq.cli.recipes"], "recipe_names", stop)
    assert gdfq_command(capsys, "recipes") == (130, "", "gdfq: interrupted\n")


def test_no_argument_at_all_prints_the_help(capsys):
    code, out, err = gdfq_command(capsys)
    assert code == 2
    assert "suggest-bits" in out + err
    assert "gdfq: " not in err
