"""gdfq.quantize in a real notebook: what its cells show."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

import gdfq
from tests.test_api import SHORT

nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="needs nbformat, nbclient and ipykernel")

SETUP = f"""
import torch, gdfq
from tests.helpers.tiny import tiny_teacher
short = {SHORT!r}
model = tiny_teacher()
images = torch.randn(12, 2, 8, 8)
batches = [(images, model(images).argmax(1))]
"""


class Notebook:
    """A kernel, and cells that it has run."""

    def __init__(self, folder, monkeypatch):
        root = Path(gdfq.__file__).parents[1]
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        )
        monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
        self.book = nbformat.v4.new_notebook()
        self.client = nbclient.NotebookClient(
            self.book, timeout=600, resources={"metadata": {"path": str(folder)}}
        )

    def run(self, source):
        """The outputs of a new cell."""
        self.book.cells.append(nbformat.v4.new_code_cell(source))
        self.client.execute_cell(self.book.cells[-1], len(self.book.cells) - 1)
        return self.book.cells[-1].outputs


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    book = Notebook(tmp_path, monkeypatch)
    with book.client.setup_kernel():
        book.run(SETUP)
        yield book
    nbformat.validate(book.book)


def html(output):
    return output["data"]["text/html"]


def test_progress_and_table(notebook, tmp_path):
    progress, table = notebook.run(
        "result = gdfq.quantize(model, 4, 8, **short, evaluate=batches)\nresult"
    )
    # One output, written again and again: the last state of it, without widgets.
    assert progress["output_type"] == "display_data"
    shown = html(progress)
    assert '<progress value="6" max="6">' in shown
    assert "fine-tuning &middot; 6/6 steps" in shown
    assert re.search(r"student [\d.]+ &middot; \d+ images/s", shown)
    assert "measuring the student before fine-tuning" in shown
    assert "left" not in shown
    assert table["output_type"] == "execute_result"
    assert html(table).count("<tr>") == 4
    assert "<td>100.00%</td>" in html(table)
    assert "W4A4" in html(table)
    assert "student after fine-tuning" in table["data"]["text/plain"]
    [silent] = notebook.run("gdfq.quantize(model, 4, 8, **short, progress=False)")
    assert silent["output_type"] == "execute_result"
    [picture] = notebook.run("result.images")
    assert "image/png" in picture["data"]
    [stream] = notebook.run("print(result.export('net.pt2'))")
    assert "bit for bit" in stream["text"]
    assert (tmp_path / "net.pt2").is_file()


def test_a_warning_and_an_error(notebook):
    [progress] = notebook.run(
        "given = {k: v for k, v in short.items() if k not in ('mean', 'std')}\n"
        "result = gdfq.quantize(model, 4, 8, **given)"
    )
    assert "<b>warning:</b> mean and std: 0.5 and 0.25" in html(progress)
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        notebook.run("gdfq.quantize(model, 7, 8, **short)")
    [error] = notebook.book.cells[-1].outputs
    assert error["ename"] == "InputError"
    assert error["evalue"].startswith("num_classes: 7 given, but Sequential")


def test_the_stop_button(notebook, tmp_path):
    """It leaves a run that can be opened and resumed, and a kernel that works."""
    kernel = notebook.client.km

    def stop():
        deadline = time.monotonic() + 300
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        os.kill(kernel.provisioner.pid, signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        notebook.run("gdfq.quantize(model, 4, 8, **{**short, 'epochs': 100_000}, out='run')")
    thread.join()
    error = notebook.book.cells[-1].outputs[-1]
    assert error["ename"] == "KeyboardInterrupt"
    assert "saved in run; to resume: gdfq.resume('run')" in error["evalue"]
    [shown] = notebook.run("gdfq.open_run('run', model)")
    assert "not finished" in html(shown)
