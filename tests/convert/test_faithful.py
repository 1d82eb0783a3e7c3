"""What a network's code may do, and its student must do too or refuse."""

import copy
import io
import threading
import types

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import gdfq
from gdfq.convert import require_same
from gdfq.convert.copying import TAKEN
from gdfq.convert.fusion import fuse
from tests.convert.test_convert import calibrated
from tests.helpers.tiny import tiny_teacher

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two convolutions; ``between`` makes of the first's output what the second reads."""

    def __init__(self, between=lambda x: F.relu(x)):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.drop = nn.Dropout(inplace=True)
        self.between = between

    def forward(self, x):
        x = self.first(x)
        return self.second(self.between(x)) + x


def follows(model):
    """The student of ``model``, which computes what it does but for 8 bits, fused too."""
    model = model.eval()
    with torch.no_grad():
        expected = model(X.clone())
    student = calibrated(gdfq.quantize_model(model, 8, 8), X.clone())
    with torch.no_grad():
        y = student(X.clone())
        error = (y - expected).abs().max() / expected.abs().max()
        assert error < 0.03
        assert torch.equal(copy.deepcopy(student)(X.clone()), y)
        torch.testing.assert_close(fuse(student, X)(X.clone()), y, rtol=0, atol=1e-5)
    student(X.clone()).square().sum().backward()
    assert student.get_submodule("first").weight.grad.abs().sum() > 0
    return student


def two(forward=None, **options):
    torch.manual_seed(0)
    kind = Two if forward is None else type("Two", (Two,), {"forward": forward})
    return kind(**options)


# ---- hooks ----


def tripled(module, args, output):
    return output * 3


def doubled(module, args):
    return (args[0] * 2,)


def raised(module, args, kwargs, output):
    return output + 1


@pytest.mark.parametrize("path", ["", "first", "second", "relu", "same"])
@pytest.mark.parametrize("hook", [tripled, doubled, raised])
def test_forward_hooks_are_part_of_the_student(path, hook):
    model = two(lambda self, x: self.second(self.same(self.relu(self.first(x)))))
    module = model.get_submodule(path)
    before = model.eval()(X)
    if hook is doubled:
        module.register_forward_pre_hook(hook)
    else:
        module.register_forward_hook(hook, with_kwargs=hook is raised)
    assert not torch.allclose(model(X), before)
    student = follows(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    assert module._forward_hooks or module._forward_pre_hooks  # the model's own stay
    stored = io.BytesIO()
    torch.save(student, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(X), student(X))


def test_hooks_of_blocks_are_part_of_the_student():
    model = nn.Sequential(two(), nn.Conv2d(4, 4, 1)).eval()
    model[0].register_forward_hook(tripled)
    student = calibrated(gdfq.quantize_model(model, 8, 8), X)
    with torch.no_grad():
        assert (student(X) - model(X)).abs().max() < 0.03 * model(X).abs().max()


def test_hooks_that_only_look_and_backward_hooks_do_no_harm():
    model, seen = two(), []
    model.second.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model.first.register_full_backward_hook(lambda module, given, made: None)
    model.relu.register_full_backward_pre_hook(lambda module, made: None)
    follows(model)
    assert seen


def test_a_hook_that_cannot_be_traced_is_named():
    model = two()
    model.second.register_forward_hook(lambda m, a, y: y if y.max() > 0 else -y)
    with pytest.raises(gdfq.InputError, match=r"test_faithful\.py:\d+.*y\.max\(\) > 0.*'second'"):
        gdfq.quantize_model(model)
    student = calibrated(gdfq.quantize_model(model, 8, 8, leaf_modules=["second"]), X)
    model.eval()
    with torch.no_grad():
        assert (student(X) - model(X)).abs().max() < 0.03 * model(X).abs().max()


def test_a_forward_of_the_instance_is_the_one_that_is_traced():
    model = two()
    model.forward = (lambda self, x: self.second(self.first(x)) * 3).__get__(model)
    model.second.forward = (lambda self, x: F.conv2d(x, self.weight, padding=1)).__get__(
        model.second
    )
    follows(model)


def in_place_of(module, forward):
    module.forward = types.MethodType(forward, module)


def test_layers_with_a_forward_of_their_own_are_the_same_network():
    model = tiny_teacher(channels=3)
    in_place_of(model[1], lambda self, x: nn.BatchNorm2d.forward(self, x) * 2)
    in_place_of(model[2], lambda self, x: F.relu(x) * 2)
    in_place_of(model[3], lambda self, x: F.conv2d(x, self.weight, None, 2, 1) * 2)
    in_place_of(model[8], lambda self, x: F.linear(x, self.weight, self.bias) * 2)
    student = calibrated(gdfq.quantize_model(model, 8, 8), X)
    require_same(model, student, X)
    with torch.no_grad():
        assert (student(X) - model(X)).abs().max() < 0.03 * model(X).abs().max()


def wrapped_forward(model):
    before = model.second.forward
    model.second.forward = lambda x: before(x) * 3


def wrapped_method(model):
    before = model.second.forward
    in_place_of(model.second, lambda self, x: before(x) * 3)


def hook_with_a_layer(model):
    layers = [model.same]
    model.first.register_forward_hook(lambda module, args, output: layers[0](output))


def wrapped_twice(model):
    wrapped_forward(model)
    wrapped_forward(model)


@pytest.mark.parametrize(
    "wrap", [wrapped_forward, wrapped_method, hook_with_a_layer, wrapped_twice]
)
def test_functions_made_with_the_network_s_layers_are_the_student_s_own(wrap):
    model = two(lambda self, x: self.second(self.first(x)))
    model.same = nn.Conv2d(4, 4, 1)
    wrap(model)
    student = follows(model)
    require_same(model, student, X)
    with torch.no_grad():
        expected = student(X)
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(student(X), expected)
    assert not model(X).any()  # its functions still have its own layers


def keep_last(module, args, output):
    module.last = output


# ---- tensors changed in place ----


def sliced(x):
    x[:, :2].relu_()
    return x


def flattened(x):
    F.relu_(x.flatten(1))
    return x


def seen_before(x):
    view = x.view(4, -1)
    F.silu(x, inplace=True)
    return view.view_as(x)


def clamped(x):
    x.view(4, -1).clamp_(0)
    return x


def grown(x):
    y = x
    y += 1
    return y * 1


def halved(x):
    y = x
    y /= 2
    y -= 0.5
    y *= 3
    return y * 1


def grown_view(x):
    y = x.view(4, -1)
    y += 1
    return x


def grown_data(x):
    x.data += 1
    return x


def added_to_view(x):
    x.view(4, -1).add_(1)
    return x


def counted(x):
    channels = x.shape[1]
    same = channels
    channels += 1
    return x * (same / channels)


def assigned(x):
    x[:, 0] = 0.5
    return x


def assigned_behind_activation(x):
    y = F.relu(x)
    y[:, 1:3] = x[:, :2] * 2
    return y


def grown_part(x):
    y = x.view(4, -1)
    y[:, :9] += 1
    return x


IN_PLACE = {
    "slice": sliced,
    "flatten": flattened,
    "a view made before": seen_before,
    "clamp_ of a view": clamped,
    "detach": lambda x: F.relu_(x.detach()) * 1,
    "F.hardtanh": lambda x: F.hardtanh(x.view_as(x), -1, 1, True),
    "split, one part read": lambda x: torch.cat([F.relu_(x.clone().chunk(2, 1)[0]), x[:, 2:]], 1),
    "+=": grown,
    "/=, -= and *=": halved,
    "+= of a view": grown_view,
    "+= of data": grown_data,
    "add_ of a view": added_to_view,
    "+= of a number": counted,
    "assignment of a part": assigned,
    "assignment of an activation's part": assigned_behind_activation,
    "+= of a part": grown_part,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_in_place_is_changed_for_all_who_read_it(name):
    def forward(self, x):
        x = self.first(x)
        return self.second(IN_PLACE[name](x)) + x

    follows(two(forward))


@pytest.mark.parametrize("alias", ["same", "drop"])
@pytest.mark.parametrize("act", ["relu", "tanh", "hardtanh"])
def test_in_place_activations_behind_what_returns_its_input(alias, act):
    def forward(self, x):
        x = self.first(x)
        return self.second(getattr(self, act)(self.get_submodule(alias)(x))) + x

    model = two(forward)
    model.tanh, model.hardtanh = nn.Identity(), nn.Hardtanh(inplace=True)
    model.tanh.register_forward_hook(lambda m, a, y: torch.tanh_(y))
    student = follows(model)
    assert not any(node.target in ("copy_", "clone") for node in student.graph.nodes)


def test_what_autograd_cannot_change_in_place_is_refused():
    def forward(self, x):
        x = self.first(x)
        F.relu_(x.chunk(2, 1)[0])
        return self.second(x)

    with pytest.raises(gdfq.InputError, match="model: its forward changes a part of a tensor in"):
        gdfq.quantize_model(two(forward))


@torch.no_grad()
def test_what_is_written_to_a_given_tensor_is_there():
    def forward(self, x):
        x = self.first(x)
        return self.second(torch.add(x, 1, out=x)) + x

    model = two(forward).eval()
    student = calibrated(gdfq.quantize_model(model, 8, 8), X)
    assert (student(X) - model(X)).abs().max() < 0.03 * model(X).abs().max()


# ---- branches ----

BRANCHES = {
    "isinstance": lambda x: x * 2 + 1 if isinstance(x, torch.Tensor) else x,
    "isinstance of a list": lambda x: x * 2 + 1 if isinstance(x, (list, tuple)) else x,
    "isinstance of a part": lambda x: x * 2 if isinstance(x.chunk(2, 1)[0], torch.Tensor) else x,
    "isinstance of parts": lambda x: x * 2 if isinstance(x.split(1), tuple) else x,
    "isinstance of a size": lambda x: x * 2 if isinstance(x.shape[1], int) else x,
    "is_tensor": lambda x: x * 2 + 1 if torch.is_tensor(x) else x,
    "type": lambda x: x * 2 + 1 if type(x) is torch.Tensor else x,
    "hasattr": lambda x: x * 2 if hasattr(x, "scale") else x + 1,
    "getattr": lambda x: x * getattr(x, "scale", 2),
    "training": lambda x: F.dropout(x, 0.5, training=False),
    "jit": lambda x: x * 2 if torch.jit.is_tracing() or torch.jit.is_scripting() else x + 1,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_are_those_of_a_tensor(name):
    def forward(self, x):
        return self.second(BRANCHES[name](self.first(x)))

    follows(two(forward))
    assert {"isinstance", "type"}.isdisjoint(globals())


def test_arguments_with_defaults_keep_them():
    def forward(self, x, mask=None, *, features=False):
        if mask is not None:
            x = x * mask
        y = self.second(self.first(x))
        return (y, x) if features else y

    follows(two(forward))
    follows(two(lambda self, *args, **options: Two.forward(self, *args, **options)))


def test_the_advice_fits_where_the_line_is():
    def forward(self, x):
        return self.second(self.first(x) if x.sum() > 0 else x)

    with pytest.raises(gdfq.InputError, match=r"test_faithful\.py:.*or move it into a module of"):
        gdfq.quantize_model(two(forward))
    with pytest.raises(gdfq.InputError, match=r"test_faithful\.py:.*leaf_modules=\['0'\]"):
        gdfq.quantize_model(nn.Sequential(two(forward)))


def test_lines_of_libraries_are_named_whatever_their_path_is(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "branching.py").write_text(
        "from torch import nn\nclass Branching(nn.Module):\n    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "torch")
    from branching import Branching

    with pytest.raises(gdfq.InputError, match=r"torch/branching\.py:4 .*x\.sum\(\) > 0"):
        gdfq.quantize_model(nn.Sequential(nn.Conv2d(3, 4, 1), Branching()))


def test_parts_of_a_sequential_are_called():
    model = two(lambda self, x: self.second(self.parts[1:](self.parts[:1](self.first(x)))) + 0)
    model.parts = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    student = follows(model)
    assert type(student.parts[0]) is gdfq.nn.QConv2d
    require_same(model, student, X)


@pytest.mark.parametrize("path", ["", "second"])
def test_a_call_of_the_class_is_traced(path):
    model = two()
    module = model.get_submodule(path)
    call = {"__call__": lambda self, x: nn.Module.__call__(self, x) * 3 + 1}
    module.__class__ = type("Called", (type(module),), call)
    module.register_forward_hook(tripled)
    require_same(model, follows(model), X)


shared_conv = nn.Conv2d(4, 4, 1)


def with_value(self, x):
    with self.first(x) as y:
        return self.second(y)


def test_what_cannot_be_traced_is_said_in_terms_of_the_network():
    model = two(lambda self, x: self.second(self.layers[0](x)))
    model.layers = (nn.Conv2d(3, 4, 1),)
    with pytest.raises(gdfq.InputError, match=r"make that a part of the network \(nn\.M"):
        gdfq.quantize_model(model)
    model = two()
    model.second.forward = lambda x: shared_conv(x)
    with pytest.raises(gdfq.InputError, match=r"a layer that is not the network's own: make"):
        gdfq.quantize_model(model)
    with pytest.raises(gdfq.InputError, match=r"'Tensor' object does not support the context"):
        gdfq.quantize_model(two(with_value))


# ---- constants, what a forward keeps ----


def constant_in_root():
    model = two(lambda self, x: Two.forward(self, x - self.mean))
    model.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    return model


def constant_in_forward():
    return two(lambda self, x: Two.forward(self, x) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1))


def computed_of_buffers():
    model = two()
    model.same = torchvision.ops.FrozenBatchNorm2d(4)
    for buffer in model.same.buffers():
        nn.init.uniform_(buffer, 0.5, 2)
    model.between = None
    kind = {"forward": lambda self, x: self.second(self.same(self.first(x)))}
    model.__class__ = type("Frozen", (Two,), kind)
    return model


@pytest.mark.parametrize("make", [constant_in_root, constant_in_forward, computed_of_buffers])
def test_tensors_that_are_constants_are_buffers_of_the_student(make, tmp_path):
    model = make()
    student = follows(model)
    student.zero_grad()
    expected = student(X)
    stored = io.BytesIO()
    torch.save(student, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(X), expected)
    other = calibrated(gdfq.quantize_model(make(), 8, 8), X + 1)
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(X), expected)
    gdfq.save(student, tmp_path / "student.safetensors")
    assert torch.equal(gdfq.load(tmp_path / "student.safetensors", make())(X), expected)
    graph = [node for node in student.graph.nodes if node.op == "get_attr"]
    names = {name for name, _ in student.named_buffers()}
    names |= {name for name, _ in student.named_parameters()}
    assert graph
    assert {node.target for node in graph} <= names
    assert student.to("meta").state_dict().keys() == other.state_dict().keys()
    assert all(tensor.is_meta for tensor in student.state_dict().values())


def test_what_a_forward_keeps_does_not_reach_the_student():
    def forward(self, x):
        self.last = x
        self.all.append(x)
        self.calls += 1
        self.count += 1
        self.second.seen = {"x": x}
        return Two.forward(self, x)

    model = two(forward)
    model.all, model.calls = [], 0
    model.register_buffer("count", torch.zeros(()))
    model(X)  # with gradients: what it kept is no leaf
    student = follows(model)
    torch.save(student, io.BytesIO())
    assert model.calls == 2
    assert all(isinstance(x, torch.Tensor) for x in model.all)
    assert model.count == 2


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_network_that_has_run_and_whose_weights_are_computed_trains():
    model = normed(Two.forward)
    nn.utils.weight_norm(model[0].second)
    model[0].register_forward_hook(keep_last)
    model(X)
    generator = gdfq.models.Generator(4, 8, channels=3, latent_dim=10, width=8)
    options = {"epochs": 1, "steps_per_epoch": 1, "warmup_epochs": 0, "calibration_batches": 1}
    trainer = gdfq.GDFQTrainer(
        model, gdfq.quantize_model(model), generator, num_classes=4, batch_size=4, **options,
        memory_format="contiguous",
    )  # fmt: skip
    before = trainer.student.get_submodule("0.second").weight.clone()
    trainer.train()
    assert not torch.equal(trainer.student.get_submodule("0.second").weight, before)


def test_a_buffer_that_the_forward_changes_and_reads_is_refused():
    def forward(self, x):
        self.count += 1
        return Two.forward(self, x) * self.count

    model = two(forward)
    model.register_buffer("count", torch.zeros(()))
    with pytest.raises(gdfq.InputError, match="model: its forward changes the buffer 'count'"):
        gdfq.quantize_model(model)
    assert model.count == 0


def spectral(layer):
    torch.nn.utils.spectral_norm(layer)
    layer.train()(torch.randn(1, 4, 4, 4))


def pruned(layer):
    from torch.nn.utils import prune

    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.2)


def parametrized(layer):
    nn.utils.parametrizations.weight_norm(layer)
    nn.utils.parametrizations.spectral_norm(layer, "weight")


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, spectral, pruned, parametrized])
def test_weights_that_are_computed_of_others_are_folded(wrap):
    model = two()
    wrap(model.second)
    with torch.no_grad():
        for parameter in model.second.parameters():
            parameter.mul_(1.5)
    with torch.no_grad():
        model.eval()(X)
        expected = model.second.weight.clone()
    student = follows(model)
    assert type(student.second) is gdfq.nn.QConv2d
    torch.testing.assert_close(student.second.weight, expected)
    assert torch.equal(model.second.weight, expected)  # as it was


def test_a_weight_that_a_hook_computes_is_quantized_where_it_is_read():
    class Gain:
        def __call__(self, module, args):
            module.weight = module.gain * module.base

    model = two()
    layer = model.second
    layer.base, layer.gain = nn.Parameter(layer.weight.data), nn.Parameter(torch.full((1,), 2.0))
    del layer.weight
    layer.register_forward_pre_hook(Gain())
    model.eval()(X)
    student = calibrated(gdfq.quantize_model(model, 8, 8), X)
    with torch.no_grad():
        assert (student(X) - model(X)).abs().max() < 0.03 * model(X).abs().max()
    assert "second.conv2d_weight" in dict(student.named_modules())


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "_code", "_tree"])
@pytest.mark.parametrize("kind", ["module", "buffer"])
def test_names_that_a_student_needs_for_itself_are_refused(name, kind):
    model = two()
    if kind == "module":
        model.add_module(name, nn.Conv2d(4, 4, 1))
    else:
        model.register_buffer(name, torch.zeros(1))
    with pytest.raises(gdfq.InputError, match=f"model: '{name}' is also the name of an attribute"):
        gdfq.quantize_model(model)


def test_every_attribute_of_a_student_is_a_name_that_is_refused():
    student = follows(two())
    own = {*vars(student), *dir(type(student))} - {*dir(nn.Module())}
    assert {"coverage", "_graph", "_tracer_cls", "_wrapped_call"} <= own <= TAKEN


@pytest.mark.parametrize("name", ["code", "_graph", "coverage", "self"])
def test_constants_have_any_name(name):
    model = two(lambda self, x: self.second(self.first(x) * getattr(self, name)))
    setattr(model, name, torch.tensor(2.0))
    follows(model)


NAMES = ["class", "None", "in", "a b", 'a"b', "a\\b", "it's", "0", "\ufb01", "\u00e9"]


def named(names):
    def forward(self, x):
        x = self.second(self.self(self.first(x)) * getattr(self, "def"))
        return sum(self.heads[n](x) * self.scales[n] for n in names) + self.get_submodule("is")(x)

    model = two(forward)
    model.heads = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in names})
    model.scales = nn.ParameterDict({name: torch.rand(1) + 0.5 for name in names})
    model.register_buffer("def", torch.full((1,), 2.0))
    model.add_module("is", nn.Conv2d(4, 4, 1))
    model.self = nn.Conv2d(4, 4, 1)
    return model


def test_modules_and_parameters_have_any_name(tmp_path):
    student = follows(named(NAMES))
    assert {type(head) for head in student.heads.children()} == {gdfq.nn.QConv2d}
    stored = io.BytesIO()
    torch.save([student, fuse(student, X)], stored)
    stored.seek(0)
    for other in torch.load(stored, weights_only=False):
        torch.testing.assert_close(other(X), student(X), rtol=0, atol=1e-5)
    gdfq.save(student, tmp_path / "student.safetensors")
    assert torch.equal(gdfq.load(tmp_path / "student.safetensors", named(NAMES))(X), student(X))


@pytest.mark.parametrize("name", ["summary", "places", "features"])
def test_other_names_are_fused_too(name):
    model = two(lambda self, x: self.second(self.get_submodule(name)(self.first(x))))
    model.add_module(name, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    student = follows(model)
    assert [place.fused for place in fuse(student, X).places] == [True]


# ---- what is random, what is empty ----


@pytest.mark.parametrize(
    "draw",
    [lambda x: F.dropout(x, 0.5), lambda x: x + torch.rand_like(x), lambda x: x.normal_()],
)
def test_random_numbers_are_refused(draw):
    with pytest.raises(gdfq.InputError, match=r"model: 1 calls .* random numbers in evaluation"):
        gdfq.quantize_model(nn.Sequential(nn.Conv2d(3, 4, 1), two(lambda self, x: draw(x))))


def test_an_activation_of_nothing_needs_no_range():
    follows(two(lambda self, x: self.second(torch.cat([F.relu(x[:, 3:]), self.first(x)], 1))))


# ---- what tracing does not see ----


def kind_as_text(self, x):
    x = self.first(x)
    return self.second(x * 2 + 1 if str(x.dtype) == "torch.float32" else x)


def caught(self, x):
    x = self.first(x)
    try:
        x = x * 2 if x.sum() < 1e9 else x
    except Exception:
        x = x + 1
    return self.second(x)


def large_images(self, x):
    x = self.first(x)
    return self.second(x + (0 if str(x.shape[-1]) == "8" else 1))


def drawn(self, x):
    return self.second(self.first(x) + torch.rand(1, 4, 1, 1))


def called_often(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return self.second(self.first(x) * self.calls)


def normed(forward):
    model = two(forward)
    model.same = nn.BatchNorm2d(4)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(model, nn.BatchNorm2d(4), head).eval()


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (kind_as_text, "differs from it at the output of '0.second' first"),
        (caught, "differs from it at the output of '0.second' first"),
        (large_images, "differs from it at the output of '0.second' first"),
        (drawn, "differs from it at the output of '0.second' first"),
        (called_often, "returns something else when it is called again"),
    ],
)
def test_a_student_of_another_network_is_refused_before_training(forward, why):
    model = normed(forward)
    student = gdfq.quantize_model(model)
    with pytest.raises(gdfq.InputError, match=f"model: .*{why}"):
        require_same(model, student, X)
    generator = gdfq.models.Generator(4, 8, channels=3, latent_dim=10, width=8)
    with pytest.raises(gdfq.InputError, match="model: "):
        gdfq.GDFQTrainer(model, student, generator, num_classes=4, batch_size=4)


def half_precision(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.second(torch.relu(self.first(x))).float()


def full_precision(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.second(torch.relu(self.first(x)))


def test_autocast_in_a_forward_is_named_where_it_is_the_difference():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), normed(half_precision))
    with pytest.raises(gdfq.InputError, match=r"first: its forward switches torch\.autocast on"):
        require_same(model, gdfq.quantize_model(model), X)
    require_same(model, gdfq.quantize_model(model, leaf_modules=["1.0"]), X)
    model = normed(full_precision)
    require_same(model, gdfq.quantize_model(model), X)


class Stating(nn.Identity):
    """A module with a state that is no tensor."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def with_extra_state(model):
    model.append(Stating())


def with_a_key_more(model):
    model._register_state_dict_hook(lambda m, state, *_: state.update(extra=torch.ones(1)))


def with_another_state(model):
    model.__class__ = type("Net", (nn.Sequential,), {"state_dict": lambda self, *_, **__: {}})


@pytest.mark.parametrize("change", [with_extra_state, with_a_key_more, with_another_state])
def test_networks_are_compared_whatever_their_state_dict_is(change):
    for forward in (Two.forward, kind_as_text):
        model = normed(forward)
        change(model)
        student = gdfq.quantize_model(model)
        if forward is kind_as_text:
            with pytest.raises(
                gdfq.InputError, match=r"differs from it at the output of '0\.second'"
            ):
                require_same(model, student, X)
        else:
            require_same(model, student, X)


def test_a_state_that_a_run_cannot_keep_is_refused():
    model = normed(Two.forward)
    with_extra_state(model)
    student = gdfq.quantize_model(model)
    generator = gdfq.models.Generator(4, 8, channels=3, latent_dim=10, width=8)
    with pytest.raises(
        gdfq.InputError, match=r"teacher: 3\._extra_state in its .* is a dict; runs"
    ):
        gdfq.GDFQTrainer(model, student, generator, num_classes=4, batch_size=4)


def test_a_student_of_another_network_s_parameters_is_said_not_to_be_compared():
    student = gdfq.quantize_model(normed(Two.forward))
    with pytest.warns(UserWarning, match=r"gdfq: student: has no parameter 0\.weight of shape"):
        require_same(tiny_teacher(channels=3), student, X)


def test_a_trained_student_is_compared_by_its_network_s_weights():
    model = normed(Two.forward)
    student = calibrated(gdfq.quantize_model(model, learned_ranges="both"), X)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    require_same(model, student, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student(X).shape == (4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_rounding_and_overflow_are_no_difference(dtype, scale):
    model = normed(Two.forward)
    with torch.no_grad():
        model[0].first.weight.mul_(scale)
        model[0].second.weight.mul_(scale)
    model.to(dtype)
    model[0].register_forward_hook(tripled)
    require_same(model, gdfq.quantize_model(model), X.to(dtype))


# ---- threads ----


def test_networks_are_converted_in_many_threads_while_others_run():
    problems, done = [], threading.Event()
    model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    other = two().eval()
    expected = other(X)

    def convert():
        try:
            for _ in range(3):
                gdfq.quantize_model(model)
        except BaseException as error:
            problems.append(error)

    def run():
        while not done.is_set():
            try:
                assert torch.equal(other(X), expected)
            except BaseException as error:
                problems.append(error)
                return

    threads = [threading.Thread(target=convert) for _ in range(3)]
    runner = threading.Thread(target=run)
    call = nn.Module.__call__
    runner.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    runner.join()
    assert not problems
    assert nn.Module.__call__ is call
    with pytest.raises(gdfq.InputError):
        gdfq.quantize_model(two(lambda self, x: x if x.sum() > 0 else -x))
    assert nn.Module.__call__ is call
