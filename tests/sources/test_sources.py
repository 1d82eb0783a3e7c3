"""Teachers from every kind of source, and files that are good, damaged or hostile."""

import functools
import os
import pickle
import sys
import urllib.error
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gdfq.errors import InputError
from gdfq.models import resnet20
from gdfq.sources import Preprocessing, load_teacher
from gdfq.sources.registries import EMBEDDED_WEIGHTS
from tests.helpers.tiny import tiny_teacher

MODELS = """
from torch import nn

def make_net(num_classes=4):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, num_classes),
    )
    return net

made = make_net()

class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_net()
    def forward(self, x):
        return self.net(x), self.net(x)

class Maps(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)

class Windows(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)
    def forward(self, x):
        assert x.shape[-1] % 16 == 0
        return super().forward(x).mean((2, 3))

def broken():
    raise KeyError("depth")

def text():
    return "net"

number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one's own in the working directory."""
    (tmp_path / "their_nets").mkdir()
    (tmp_path / "their_nets" / "__init__.py").touch()
    (tmp_path / "their_nets" / "models.py").write_text(MODELS)
    (tmp_path / "broken_nets.py").write_text("import their_nets.nothing")
    (tmp_path / "wrong_nets.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    yield tmp_path
    for name in [m for m in sys.modules if m.split(".")[0].endswith("_nets")]:
        del sys.modules[name]


OWN = {"image_size": 8}


def test_a_factory_of_one_s_own(package):
    loaded = load_teacher("their_nets.models:make_net", "builtin", **OWN)
    assert loaded.preprocessing == Preprocessing(
        4, 8, 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 8
    )
    assert loaded.notes == [
        "mean and std: ImageNet's, because their_nets.models:make_net does not say"
    ]
    assert not loaded.network.training
    wide = load_teacher("their_nets.models:make_net", "builtin", **OWN, num_classes=7)
    assert wide.network(torch.zeros(1, 3, 8, 8)).shape == (1, 7)
    again = load_teacher("their_nets.models:made", "builtin", **OWN)
    assert again.network is sys.modules["their_nets.models"].made


def test_random_weights_are_seeded_and_said_to_be_random(package):
    first, same, other = (
        load_teacher("their_nets.models:make_net", "random", seed=seed, **OWN) for seed in (1, 1, 2)
    )
    states = [loaded.network.state_dict() for loaded in (first, same, other)]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])
    assert states[0]["1.running_mean"].abs().max() > 0.01
    assert any("weights: random ones" in note for note in first.notes)


def test_what_the_recipe_says_comes_first(package):
    given = {
        **OWN, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "resize": 9, "crop": "squash",
        "interpolation": "bicubic", "channels": 3, "num_classes": 4,
    }  # fmt: skip
    loaded = load_teacher("their_nets.models:make_net", "builtin", "cifar10-is-not-asked", **given)
    assert loaded.preprocessing.fields() == given
    assert not loaded.notes


def test_the_data_set_s_usual_values_come_last(package):
    loaded = load_teacher(
        "their_nets.models:make_net", "builtin", data="cifar10", num_classes=10
    ).preprocessing
    assert (loaded.image_size, loaded.mean) == (32, [0.4914, 0.4822, 0.4465])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("builtin", Preprocessing(10, 28, 1, [0.286], [0.353], 28)),
        (
            "cifar10",
            Preprocessing(10, 32, 3, [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616], 32),
        ),
    ],
)
def test_the_embedded_networks(weights, expected):
    loaded = load_teacher("gdfq:resnet20", weights)
    assert loaded.weights == weights
    assert loaded.preprocessing == expected
    stored = load_file(EMBEDDED_WEIGHTS[weights][1])
    assert all(torch.equal(v, stored[k]) for k, v in loaded.network.state_dict().items())
    fresh = load_teacher("gdfq:resnet32", "random", data="cifar100")
    assert fresh.preprocessing.num_classes == 100


def test_torchvision():
    pytest.importorskip("torchvision")
    small = {"weights": "random", "image_size": 32}
    loaded = load_teacher("torchvision:shufflenet_v2_x0_5", **small, num_classes=6)
    assert loaded.network(torch.zeros(1, 3, 32, 32)).shape == (1, 6)
    loaded = load_teacher("torchvision:mobilenet_v2", "random", image_size=64).preprocessing
    assert (loaded.image_size, loaded.resize, loaded.num_classes) == (64, 67, 1000)
    assert loaded.mean == [0.485, 0.456, 0.406]


def torchvision_cache(monkeypatch, folder, content, name="shufflenet_v2_x0_5"):
    """Lets torchvision find ``content`` as its downloaded weights."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(folder))
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = folder / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    torch.save(content, path)


@pytest.mark.parametrize("weights", [None, "pretrained", "DEFAULT", "IMAGENET1K_V1"])
def test_torchvision_s_own_weights(tmp_path, monkeypatch, weights):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        state = torchvision.models.shufflenet_v2_x0_5().state_dict()
    torchvision_cache(monkeypatch, tmp_path, state)
    loaded = load_teacher("torchvision:shufflenet_v2_x0_5", weights)
    assert loaded.weights == "IMAGENET1K_V1"
    assert all(torch.equal(v, state[k]) for k, v in loaded.network.state_dict().items())
    assert (loaded.preprocessing.image_size, loaded.preprocessing.resize) == (224, 256)


def test_a_file_of_torchvision_s_is_known_by_its_name(tmp_path):
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng():
        state = models.mobilenet_v2().state_dict()
    url = models.MobileNet_V2_Weights.IMAGENET1K_V1.url
    file, renamed = tmp_path / url.rsplit("/", 1)[1], tmp_path / "mine.pth"
    torch.save(state, file)
    torch.save(state, renamed)
    resized = {
        path: load_teacher("torchvision:mobilenet_v2", str(path), image_size=64).preprocessing
        for path in (file, renamed)
    }
    # The first weights were measured after resizing to 256, the second, the default, to 232.
    assert (resized[file].resize, resized[renamed].resize) == (74, 67)


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    loaded = load_teacher("timm:test_resnet.r160_in1k", "random")
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg("test_resnet.r160_in1k").to_dict()
    )
    found = loaded.preprocessing
    assert (found.channels, found.image_size, found.image_size) == config["input_size"]
    assert (tuple(found.mean), tuple(found.std)) == (config["mean"], config["std"])
    assert found.interpolation == config["interpolation"]
    assert found.resize == int(found.image_size / config["crop_pct"])
    save_file(loaded.network.state_dict(), tmp_path / "w.safetensors")
    again = load_teacher("timm:test_resnet.r160_in1k", str(tmp_path / "w.safetensors"))
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(again.network(x), loaded.network(x))
    gray = load_teacher(
        "timm:test_resnet", "random", channels=1, mean=[0.5], std=[0.5], num_classes=3
    )
    assert gray.network(torch.zeros(1, 1, 160, 160)).shape == (1, 3)


def test_pytorchcv(tmp_path, monkeypatch):
    pytest.importorskip("pytorchcv")
    loaded = load_teacher("pytorchcv:resnet20_cifar100", "random")
    assert loaded.preprocessing == Preprocessing(
        100, 32, 3, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761], 32
    )
    large = load_teacher("pytorchcv:resnet10", "random").preprocessing
    assert (large.image_size, large.resize, large.num_classes) == (224, 256, 1000)
    file = tmp_path / "w.pth"
    monkeypatch.setattr(
        "pytorchcv.models.common.model_store.get_model_file", lambda *a, **k: str(file)
    )
    torch.save(loaded.network.state_dict(), file)
    again = load_teacher("pytorchcv:resnet20_cifar100")
    assert again.weights == "pretrained"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.network(x), loaded.network(x))
    torch.save(Evil(tmp_path / "marker"), file)
    with pytest.raises(InputError, match=r"is refused: it holds more than tensors"):
        load_teacher("pytorchcv:resnet20_cifar100")
    assert not (tmp_path / "marker").exists()


# ---- files ----


class Evil:
    """When unpickled, makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def state():
    return resnet20(10, 1).state_dict()


KEEPS = {
    "safetensors": lambda path: save_file(state(), path),
    "state.pt": lambda path: torch.save(state(), path),
    "old.pth": lambda path: torch.save(state(), path, _use_new_zipfile_serialization=False),
    "nested.pth": lambda path: torch.save({"epoch": 3, "state_dict": state()}, path),
    "model.pth": lambda path: torch.save({"lr": 0.1, "model": OrderedDict(state())}, path),
    "parallel.pth.tar": lambda path: torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state().items()}}, path
    ),
    "compiled.bin": lambda path: torch.save(
        {f"_orig_mod.{k}": v.half() if v.is_floating_point() else v for k, v in state().items()},
        path,
    ),
    "before counters.pt": lambda path: torch.save(
        {k: v for k, v in state().items() if "num_batches_tracked" not in k}, path
    ),
}


@pytest.mark.parametrize("name", KEEPS)
def test_files_of_weights(tmp_path, name):
    path = tmp_path / (name if "." in name else f"w.{name}")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        KEEPS[name](path)
        torch.manual_seed(5)
        expected = state()["fc.weight"]
    loaded = load_teacher("gdfq:resnet20", str(path), data="fashion-mnist")
    assert loaded.weights == str(path)
    atol = 1e-3 if "compiled" in name else 0
    torch.testing.assert_close(loaded.network.fc.weight.data, expected, rtol=0, atol=atol)


def prefixed(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


def zeros():
    """A state of the same network, all zeros."""
    return {key: torch.zeros_like(value) for key, value in state().items()}


def parameters():
    """Zeros for the parameters alone, as an average of them has."""
    return {key: value for key, value in zeros().items() if "running" not in key}


MIXED = {
    "net": (lambda s: {"net": s, "acc": 91.2, "epoch": 3}, None),
    "network": (lambda s: {"network": prefixed("module.", s)}, None),
    "deep": (lambda s: {"checkpoint": {"model": {"state_dict": s}}}, None),
    "prefix": (lambda s: {"state_dict": prefixed("model.", s)}, None),
    "two prefixes": (lambda s: prefixed("module.net.", s), None),
    "compiled inside": (
        lambda s: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()}, None,
    ),
    "optimizer": (
        lambda s: {
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
            "model": s, "loss": torch.tensor(0.5),
        },
        None,
    ),
    "lightning": (
        lambda s: {"state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(10)}},
        "'state_dict', 'model.*' of FILE taken, and not 'criterion.weight'",
    ),
    "averaged": (
        lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
        "'module.*' of FILE taken, and not 'n_averaged'",
    ),
    "gan": (lambda s: {"generator": {"a": torch.ones(2)}, "classifier": s}, None),
    "beside": (lambda s: {**s, "epoch": 3}, None),
    "ema": (
        lambda s: {"state_dict_ema": zeros(), "state_dict": s},
        "'state_dict' of FILE taken; it also has 'state_dict_ema' (averages); to take it, "
        "torch.save(torch.load('FILE')['state_dict_ema'], 'other.pt')",
    ),
    "ema inside": (
        lambda s: {"ema": {"module": zeros(), "decay": 0.9}, "model": s},
        "'model' of FILE taken; it also has 'ema.module' (averages); to take it, "
        "torch.save(torch.load('FILE')['ema']['module'], 'other.pt')",
    ),
    "ema of parameters": (
        lambda s: {"net": s, "ema": {"shadow": parameters()}},
        "'net' of FILE taken; it also has 'ema.shadow' (averages, without "
        "'bn1.running_mean'); to take it, "
        "torch.save(torch.load('FILE')['ema']['shadow'], 'other.pt')",
    ),
    "ema by prefix": (
        lambda s: {**prefixed("ema_model.", zeros()), **prefixed("model.", s)},
        "'model.*' of FILE taken; it also has 'ema_model.*' (averages); to take 'ema_model.*', "
        "leave the other entries out of the file",
    ),
    "ema beside, by dots": (
        lambda s: {**s, **prefixed("ema.", zeros()), "ema.decay": torch.tensor(0.9)},
        "names without a prefix of FILE taken; it also has 'ema.*' (averages); to take 'ema.*', "
        "leave the other entries out of the file",
    ),
    "ema beside, by underscores": (
        lambda s: {**prefixed("ema_", zeros()), **s},
        "names without a prefix of FILE taken; it also has 'ema_*' (averages); to take 'ema_*', "
        "leave the other entries out of the file",
    ),
    "ema of parameters by underscores": (
        lambda s: {"net": {**prefixed("module.", s), **prefixed("module_avg_", parameters())}},
        "'net', 'module.*' of FILE taken; it also has 'net', 'module_avg_*' (averages, without "
        "'bn1.running_mean'); to take 'net', 'module_avg_*', leave the other entries out of the "
        "file",
    ),
    "ema alone, by underscores": (
        lambda s: prefixed("ema_", s), "'ema_*' of FILE taken, averaged over the training",
    ),
    "averages by other names": (
        lambda s: {"netEMA": zeros(), "avg_model": zeros(), "mean_teacher": zeros(), "net": s},
        "'net' of FILE taken; it also has 'netEMA' (averages) and 'avg_model' (averages) and "
        "'mean_teacher' (averages); to take it, "
        "torch.save(torch.load('FILE')['netEMA'], 'other.pt')",
    ),
    "other underscores": (
        lambda s: {**prefixed("module.", s), **prefixed("teacher_", zeros())},
        "'module.*' of FILE taken, and not 'teacher_conv1.weight' and 127 more",
    ),
    "ema alone": (lambda s: {"ema": s}, "'ema' of FILE taken, averaged over the training"),
    "best": (
        lambda s: {"best_state_dict": zeros(), "state_dict": s},
        "'state_dict' of FILE taken; it also has 'best_state_dict'; to take it, "
        "torch.save(torch.load('FILE')['best_state_dict'], 'other.pt')",
    ),
    "another's head": (lambda s: {"old": resnet20(12, 1).state_dict(), "new": s}, None),
    "sparse": (
        lambda s: {k: v.to_sparse() if v.dim() > 1 else v for k, v in s.items()}, None,
    ),
    "double": (lambda s: {k: v.double() for k, v in s.items()}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_of_a_file_with_more_the_network_s_state_is_taken_and_said(tmp_path, name):
    make, note = MIXED[name]
    path, expected = tmp_path / "w.pth", state()
    torch.save(make(expected), path)
    loaded = load_teacher("gdfq:resnet20", str(path), data="fashion-mnist")
    for key, value in loaded.network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    notes = [text.replace(str(path), "FILE") for text in loaded.notes if text.startswith("weights")]
    assert [text.replace("w.pth", "FILE") for text in notes] == (
        [f"weights: {note}"] if note else []
    )


def without(key):
    return {k: v for k, v in state().items() if k != key}


def cut(path, keep=None):
    keep(path)
    path.write_bytes(path.read_bytes()[:-100_000])


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), path)


DAMAGED = "cannot be read: it is damaged, or not a file of torch.save$"
BAD = {
    "missing.pt": (lambda p: torch.save(without("fc.bias"), p), "missing key 'fc.bias'$"),
    "several.pt": (
        lambda p: torch.save({**without("fc.bias"), "a": torch.ones(1), "b": torch.ones(1)}, p),
        "missing key 'fc.bias', unexpected key 'a', and 1 more$",
    ),
    "shape.pt": (
        lambda p: torch.save(resnet20(12, 1).state_dict(), p),
        r"does not fit gdfq:resnet20: 'fc.weight' has shape \(12, 64\), not \(10, 64\), and 1 more",
    ),
    "cut.pt": (lambda p: cut(p, KEEPS["state.pt"]), DAMAGED),
    "cut.safetensors": (lambda p: cut(p, KEEPS["safetensors"]), "cannot be read: "),
    "old.pth": (lambda p: cut(p, KEEPS["old.pth"]), DAMAGED),
    "empty.pt": (lambda p: p.touch(), DAMAGED),
    "garbage.pt": (lambda p: p.write_bytes(bytes(range(256))), DAMAGED),
    "text.pt": (lambda p: p.write_text("hello world"), DAMAGED),
    "short.pt": (lambda p: p.write_text("MMMM"), DAMAGED),
    "folder.pt": (lambda p: p.mkdir(), "there is no file"),
    "tensor.pt": (lambda p: torch.save(torch.ones(2), p), "holds a Tensor, not a state dict"),
    "numbers.pt": (lambda p: torch.save({"a": 1}, p), "is not a state dict: 'a' has type int"),
    "module.pt": (lambda p: torch.save(tiny_teacher(), p), "refused: .*Sequential.*whole pickled"),
    "arguments.pt": (
        lambda p: torch.save({"state_dict": state(), "args": SimpleNamespace(a=1)}, p),
        r"refused: .*SimpleNamespace.*torch.save\(model.state_dict",
    ),
    "script.pt": (scripted, "refused: .*TorchScript"),
    "codes.pt": (
        lambda p: torch.save({k: v.to(torch.int8) for k, v in state().items()}, p),
        "does not fit gdfq:resnet20: 'conv1.weight' is int8, where the network has float32: codes "
        "of a quantized network, or not weights; .* floating-point numbers, and",
    ),
    "codes and scales.pt": (
        lambda p: torch.save(
            {**state(), "fc.weight": torch.ones(10, 64).to(torch.uint8), "fc.scale": torch.ones(1)},
            p,
        ),
        "'fc.weight' is uint8, where the network has float32: codes",
    ),
    "quantized.pt": (
        lambda p: torch.save(
            {
                **state(),
                "fc.weight": torch.quantize_per_tensor(torch.ones(10, 64), 1, 0, torch.qint8),
            },
            p,
        ),
        r"'fc.weight' is quantized to qint8; write its float values, weight.dequantize\(\)$",
    ),
    "complex.pt": (
        lambda p: torch.save({**state(), "fc.weight": torch.ones(10, 64) + 1j}, p),
        "'fc.weight' is complex64, where the network has float32$",
    ),
    "meta.pt": (
        lambda p: torch.save({**state(), "fc.weight": torch.ones(10, 64, device="meta")}, p),
        "'fc.weight' has no values, it is on the meta device$",
    ),
    "two.pt": (
        lambda p: torch.save({"epoch": 1, "a": state(), "b": state()}, p),
        r"holds several states that fit gdfq:resnet20: 'a' and 'b'; to take it, "
        r"torch.save\(torch.load\('two.pt'\)\['a'\], 'other.pt'\)$",
    ),
    "nested.pt": (
        lambda p: torch.save({"epoch": 3, "best": without("fc.bias"), "args": {"lr": 0.1}}, p),
        r"nested.pt, 'best', does not fit gdfq:resnet20: missing key 'fc.bias'; the file has "
        r"'epoch' \(int\), 'best' \(\d+ entries\), 'args' \(1 entries\)$",
    ),
}


@pytest.mark.filterwarnings("error", "ignore:.*torch.jit", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_weights(tmp_path, name):
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        load_teacher("gdfq:resnet20", str(tmp_path / name), data="fashion-mnist")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["evil.pt", "evil_old.pt", "nested.pt", "plain.pkl.pt"])
def test_nothing_in_a_file_is_executed(tmp_path, name):
    marker, path = tmp_path / "marker", tmp_path / name
    if name == "plain.pkl.pt":
        path.write_bytes(pickle.dumps(Evil(marker)))
    elif name == "nested.pt":
        torch.save({"state_dict": state(), "extra": Evil(marker)}, path)
    else:
        torch.save(Evil(marker), path, _use_new_zipfile_serialization=name == "evil.pt")
    with pytest.raises(InputError, match=r"weights: .* (is refused|cannot be read)"):
        load_teacher("gdfq:resnet20", str(path), data="fashion-mnist")
    assert not marker.exists()
    read = pickle.load if "pkl" in name else functools.partial(torch.load, weights_only=False)
    with path.open("rb") as file:
        read(file)  # that would have
    assert marker.exists()


def test_nor_in_what_a_library_downloads(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    torchvision_cache(monkeypatch, tmp_path, Evil(tmp_path / "marker"))
    with pytest.raises(InputError, match=r"weights: IMAGENET1K_V1 of .* is refused"):
        load_teacher("torchvision:shufflenet_v2_x0_5")
    assert not (tmp_path / "marker").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no network\nat all")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(InputError, match="of torchvision:resnet18 failed: URLError: ") as caught:
        load_teacher("torchvision:resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torchvision", "timm", "pytorchcv"])
def test_a_package_that_is_missing(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"model: {name}:net needs {name}: pip install {name}"):
        load_teacher(f"{name}:net")


# ---- names and networks that cannot be ----

WRONG = {
    "no source": ("resnet18", {}, "model: must be torchvision:NAME, .* got 'resnet18'"),
    "torchvision": ("torchvision:resnet81", {}, "no network 'resnet81'; near matches: resnet18"),
    "timm": ("timm:efficientnet_lite", {}, "timm has no network .*near matches: efficientnet_lite"),
    "timm's tag": ("timm:resnet18.a1_in2k", {}, "no weights 'a1_in2k'; near matches: .*a1_in1k"),
    "pytorchcv": ("pytorchcv:resnet20_cifar", {}, "near matches: resnet20_cifar10"),
    "embedded": ("gdfq:resnet", {}, "near matches: .*resnet20"),
    "embedded depth": ("gdfq:resnet21", {"weights": "random"}, "depth: must be 6 n "),
    "tag": (
        "torchvision:resnet18", {"weights": "V9"},
        "a file, pretrained, IMAGENET1K_V1, random; got 'V9'",
    ),
    "file": ("torchvision:resnet18", {"weights": "a/b"}, "weights: there is no file a/b"),
    "no builtin": ("gdfq:resnet32", {}, "weights: must be given for gdfq:resnet32: a file, random"),
    "channels": ("torchvision:resnet18", {"channels": 1}, "channels: torchvision's networks take"),
    "module": ("no_nets.models:net", {}, "there is no module 'no_nets' to import"),
    "submodule": ("their_nets.model:net", {}, "there is no module 'their_nets.model' to import"),
    "its import": ("broken_nets:net", {}, "importing broken_nets failed: No module named"),
    "its code": ("wrong_nets:net", {}, r"failed: ZeroDivisionError: .* \(wrong_nets.py:1\)"),
    "typo": ("their_nets.models:make_ned", {}, "no 'make_ned'; near matches: make_net"),
    "number": ("their_nets.models:number", {}, "has type int, it is not a factory"),
    "text": ("their_nets.models:text", {}, "returned a str, not an nn.Module"),
    "raises": ("their_nets.models:broken", {}, r"failed: KeyError: 'depth' \(models.py:"),
    "auxiliary": ("their_nets.models:Auxiliary", {}, "returns a tuple in evaluation mode"),
    "maps": ("their_nets.models:Maps", {}, r"shape \(2, 4, 8, 8\) for two images, not logits"),
    "gray": ("their_nets.models:make_net", {"channels": 1}, "does not take images of 1x8x8"),
    "assertion": (
        "their_nets.models:Windows", {},
        r"of 3x8x8 .*: AssertionError \(models.py:\d+: `assert x.shape\[-1\] % 16 == 0`\)",
    ),
    "size": (
        "torchvision:squeezenet1_1", {"weights": "random", "image_size": 8},
        r"of 3x8x8 \(channels, height, width\); it is made for 224x224: ",
    ),
    "classes": (
        "their_nets.models:made", {"num_classes": 5}, "num_classes: 5 given, but .* has 4 classes",
    ),
    "no size": ("their_nets.models:made", {"image_size": None}, "does not say which images it"),
    "mean": ("their_nets.models:made", {"mean": [0, 1]}, "mean: needs one entry for each of the 3"),
    "resize": ("their_nets.models:made", {"resize": 7}, "resize: must be >= image_size = 8, got 7"),
    "data": ("their_nets.models:made", {"data": "cifar10"}, "data: cifar10 has 10 classes, .* 4"),
    "weights": ("their_nets.models:made", {"weights": None}, "a file, builtin, random"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(package, case):
    model, given, message = WRONG[case]
    if model.partition(":")[0] in ("torchvision", "timm", "pytorchcv"):
        pytest.importorskip(model.partition(":")[0])
    usual = {**OWN, "weights": "random"} if "nets" not in model else {**OWN, "weights": "builtin"}
    if model.startswith("gdfq:"):
        usual = {"data": "fashion-mnist"}
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(model, **{**usual, **given})
    assert "\n" not in str(caught.value)
