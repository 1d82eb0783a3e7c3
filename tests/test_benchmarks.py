"""The benchmarks' sizes are those of the networks they name; their tables say what was measured."""

import pytest
import torch
import torchvision

from benchmarks import sizes, table
from gdfq.models.resnet import resnet20

NETWORKS = {
    "resnet20": lambda: resnet20(10),
    "resnet18": torchvision.models.resnet18,
    "mobilenetv2": torchvision.models.mobilenet_v2,
}


@pytest.mark.parametrize("name", sizes.NETWORKS)
def test_sizes_are_the_network_s(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
    modules = list(network.modules())
    weighted = (torch.nn.Conv2d, torch.nn.Linear)
    weights = [tuple(m.weight.shape) for m in modules if isinstance(m, weighted)]
    norms = [m.num_features for m in modules if isinstance(m, torch.nn.BatchNorm2d)]
    assert sorted(sizes.NETWORKS[name]) == sorted(weights)
    assert sorted(sizes.NORMS[name]) == sorted(norms)


def test_means_and_the_rows_that_lose():
    rows = [
        table.Row("a", "small", 1e-3, 8, {"eager": 2.0, "torch.compile": 0.5, "copy": 0.25}),
        table.Row("a", "large", 1e-3, 8, {"eager": 8.0, "torch.compile": 2.0}),
        table.Row("b", "", 1e-3, None, {"eager": 4.0}),
    ]
    means = table.means(rows)
    assert means == pytest.approx({"eager": 4.0, "torch.compile": 1.0, "aten": None, "copy": 0.25})
    assert [row.name for row in table.slower_than_compiled(rows)] == ["a[small]"]
    text = table.markdown(rows, "cpu", None)
    assert "| a | 4.00 | 1.00 |  | 0.25 |" in text
    assert "| **all 3 rows** | 4.00 | 1.00 |  | 0.25 |" in text
    assert "Slower than `torch.compile`: 1 of 2 rows. a[small] (0.50)" in text
