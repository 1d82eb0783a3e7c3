"""Networks of other libraries: converted, trained for five steps, exported, saved and loaded."""

import importlib.metadata
import io
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import gdfq
from gdfq.convert.fusion import fuse
from gdfq.functional import batch_norm_stats
from gdfq.nn import QAct
from gdfq.nn.qact import activate
from gdfq.nn.weight import QuantizedWeight
from tests.convert.test_convert import calibrated
from tests.helpers.networks import NETWORKS, generator_of, trainer_of

pytestmark = pytest.mark.thorough

TABLE = Path(__file__).parents[2] / "docs" / "networks.md"
LIBRARIES = ("torch", "torchvision", "timm", "pytorchcv")
COLUMNS = (
    "network", "from", "parameters, millions", "quantized", "float", "uncovered",
    "layers that read float values", "seconds to convert", "special",
)  # fmt: skip
TIME = COLUMNS.index("seconds to convert")
HEAD = """# Networks

`tests/convert/test_networks.py` converts each of these networks, trains it for five steps at 4
bits, exports it by `torch.export`, saves and loads it, with random weights and statistics of
generated images. The columns count operations of the traced network:

* *quantized*: with a quantized weight or a quantized output;
* *float*: in float because they compute nothing or because the method leaves them so (batch norms,
  pooling, sums, products);
* *uncovered*: in float, though a quantized network should quantize them.

A layer reads float values if no activation precedes it: the first layer, and those after a linear
bottleneck, a sum, or squeeze and excitation. `quantize_inputs=True` quantizes these too.

`python -m pytest tests/convert/test_networks.py --write-table` writes this page. Times are from one
run.

"""


def versions():
    return "Made with " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in LIBRARIES) + "."


def row(network, model, report, seconds):
    counts = report.counts()
    refused = "; refused by the trainer: no batch norm" if network.error else ""
    return (
        network.name,
        network.source,
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        str(counts["quantized"]),
        str(counts["float"]),
        str(counts["uncovered"]),
        str(len(report.float_inputs)),
        f"{seconds:.2f}",
        network.special + refused,
    )


def committed():
    """The rows of the table, and the line about versions."""
    lines = TABLE.read_text().splitlines()
    rows = [tuple(c.strip() for c in line[1:-1].split("|")) for line in lines if line[:1] == "|"]
    assert rows[0] == COLUMNS
    return rows[2:], next(line for line in lines if line.startswith("Made with"))


@pytest.fixture(scope="module")
def rows(request):
    found = {}
    yield found
    if request.config.getoption("--write-table"):
        assert len(found) == len(NETWORKS), "the table is written from a run of all networks"
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(found[network] for network in NETWORKS)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        TABLE.write_text(f"{HEAD}{versions()}\n\n{table}\n")


def convert(network, rows, request, strict):
    """Teacher and student, noted in the table or found there."""
    teacher = network.make()
    started = time.perf_counter()
    student = gdfq.quantize_model(teacher, 4, 4, strict=strict)
    seconds = time.perf_counter() - started
    rows[network] = row(network, teacher, student.coverage, seconds)
    if not request.config.getoption("--write-table"):
        found, made_with = committed()
        if made_with == versions():  # another version may compute the same in other operations
            (expected,) = [cells for cells in found if cells[0] == network.name]
            mine = rows[network]
            assert mine[:TIME] + mine[TIME + 1 :] == expected[:TIME] + expected[TIME + 1 :]
    return teacher, student


def require_complete(student):
    """Every operation of the graph is in the report, or its quantizer is."""
    names = {op.name for op in student.coverage.operations}
    for node in student.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            name = str(node.target) if node.op == "call_module" else node.name
            behind = [str(user.target) for user in node.users if user.op == "call_module"]
            assert name in names or (
                behind[0] in names and isinstance(student.get_submodule(behind[0]), QAct)
            ), node.format_node()


@torch.no_grad()
def require_same_graph(teacher, student, network):
    """Without its quantizers, the student computes what the teacher does."""
    images = torch.randn(2, 3, network.size, network.size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QAct, "forward", lambda self, x: activate(x, self.act))
        patch.setattr(QuantizedWeight, "_quantized_weight", lambda self: self.weight)
        y, expected = student(images), teacher(images)
    assert (y - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("network", [n for n in NETWORKS if not n.error], ids=lambda n: n.name)
def test_converts_trains_exports_and_loads(network, rows, request):
    teacher, student = convert(network, rows, request, strict=True)
    assert student.coverage.uncovered == []
    require_complete(student)
    assert not teacher.state_dict().keys() - student.state_dict().keys()
    require_same_graph(teacher, student, network)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}

    trainer = trainer_of(teacher, student, network)
    for _ in range(5):
        losses = trainer.step()
        assert losses.keys() >= {"generator", "bns", "student"}
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
    parameters = dict(student.named_parameters())
    # What does not run in evaluation mode, the auxiliary heads, has no gradient.
    used = {name: p for name, p in parameters.items() if p.grad is not None}
    assert all("aux" in name.lower() for name in parameters.keys() - used.keys())
    assert sum(bool(p.grad.any()) for p in used.values()) > 0.9 * len(used)
    # Weights of large values do not change by the paper's small rate, in so few steps.
    assert any(not torch.equal(p, before[name]) for name, p in used.items())

    del trainer, before  # VGG16 is large
    images = torch.randn(2, 3, network.size, network.size)
    with torch.no_grad():
        expected = student(images)
        program = torch.export.export(student, (images,))
        assert torch.equal(program.module()(images), expected)
        stored = io.BytesIO()
        torch.save(student.state_dict(), stored)
        stored.seek(0)
        loaded = gdfq.quantize_model(teacher, 4, 4)
        loaded.load_state_dict(torch.load(stored, weights_only=True))
        assert torch.equal(loaded(images), expected)


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.error], ids=lambda n: n.name)
def test_networks_without_batch_norm_are_refused_with_the_reason(network, rows, request):
    teacher, student = convert(network, rows, request, strict=False)
    with pytest.raises(gdfq.InputError, match=network.error) as error:
        trainer_of(teacher, student, network)
    assert "the generator learns what images look like from the statistics" in str(error.value)


def test_the_table_lists_these_networks(request):
    if request.config.getoption("--write-table"):
        pytest.skip("it is being written")
    found, _ = committed()
    assert [cells[:2] for cells in found] == [(n.name, n.source) for n in NETWORKS]


def by_name(name):
    (network,) = [network for network in NETWORKS if network.name == name]
    return network


def normalize_by_kernel(norm, x):
    """The frozen batch norm ``norm``, in the arithmetic of the fused operators."""
    statistics = norm.running_mean, norm.running_var
    y, _, _ = batch_norm_stats(x, *statistics, norm.weight, norm.bias, norm.eps)
    return y


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0", "repvgg_a0", "googlenet"])
def test_fused_networks_compute_the_same_and_learn_the_same(name, monkeypatch):
    network = by_name(name)
    student = gdfq.quantize_model(network.make(), 8, 8)
    generator = generator_of(network)
    with torch.no_grad():
        images = generator(torch.randn(4, 16), torch.randint(10, (4,)))
    calibrated(student, images)
    fused = fuse(student, images)
    assert {p.what for p in fused.not_fused} <= {"batch norm without a quantizer behind"}
    # PyTorch's batch norm rounds differently from the fused operators, and with another number of
    # threads differently again; a value beside a tie then gets the next code, which a deep network
    # of random weights amplifies. With one arithmetic for both, all codes are equal, and gradients
    # differ by the order of their sums only.
    monkeypatch.setattr(nn.BatchNorm2d, "forward", normalize_by_kernel)
    found = []
    for model in (student, fused):
        student.zero_grad()
        y = model(images)
        y.square().mean().backward()
        # What does not run, the auxiliary heads, has no gradient.
        parameters = student.named_parameters()
        found.append((y, {name: p.grad for name, p in parameters if p.grad is not None}))
    (y, gradients), (expected, expected_gradients) = found
    assert gradients.keys() == expected_gradients.keys()
    assert torch.equal(y, expected)
    gradient, expected_gradient = (
        torch.cat([value.flatten() for value in values.values()])
        for values in (gradients, expected_gradients)
    )
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


def test_fused_steps_are_plain_ones():
    # Where a code is beside a tie, rounding decides: deep networks of random weights amplify that.
    network = by_name("resnet18d")
    teacher = network.make()
    steps = []
    for chosen in (True, False):
        student = gdfq.quantize_model(teacher, 8, 8)
        trainer = trainer_of(teacher, student, network, fuse=chosen)
        steps.append([trainer.step() for _ in range(3)])
    for ours, theirs in zip(*steps, strict=True):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=1e-4, msg=name)
