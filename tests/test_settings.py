"""Settings are declared once, checked strictly, and every mistake has one wording."""

import copy
import inspect
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, model_validator

import gdfq
from gdfq.errors import InputError
from gdfq.nn import Quantization
from gdfq.settings import Settings
from gdfq.training import Training


class Loss(Settings):
    kind: Literal["mse", "kl"] = "mse"
    decay: float = Field(0.0, ge=0, lt=1)
    rate: float = Field(1.0, gt=0)
    offset: float = 0.0
    bits: Annotated[int, Field(ge=2, le=8)] | None = None
    classes: int = Field(2, ge=2)
    seed: int = Field(0, ge=0, lt=2**63)
    share: float = Field(0.5, ge=0, le=1)
    clip: bool = False
    layers: tuple[str, ...] = Field(("*",), min_length=1)
    epochs: tuple[Annotated[int, Field(ge=0)], ...] = (100,)

    @model_validator(mode="after")
    def _clips_mse_alone(self):
        if self.clip and self.kind != "mse":
            raise InputError(f"clip: has no effect with kind = {self.kind!r}")
        return self


class Widths(Settings):
    weight: int = Field(ge=2, le=8)


class Run(Settings):
    name: str = Field(pattern="^[a-z]+$")
    loss: Loss = Loss()
    widths: dict[str, Widths] = Field({})


MISTAKES = [
    ({"kind": "l1"}, "kind: must be one of 'mse' or 'kl', got 'l1'"),
    ({"kind": ["mse"]}, "kind: must be one of 'mse' or 'kl', got ['mse']"),
    ({"decay": 1}, "decay: must be a number in [0, 1), got 1"),
    ({"decay": float("nan")}, "decay: must be a number in [0, 1), got nan"),
    ({"decay": True}, "decay: must be a number in [0, 1), got True"),
    ({"decay": None}, "decay: must be a number in [0, 1), got None"),
    ({"rate": 0}, "rate: must be a number > 0 and finite, got 0"),
    ({"rate": float("inf")}, "rate: must be a number > 0 and finite, got inf"),
    ({"rate": "1e-3"}, "rate: must be a number > 0 and finite, got '1e-3'"),
    ({"offset": float("-inf")}, "offset: must be a finite number, got -inf"),
    ({"bits": 9}, "bits: must be an int from 2 to 8, got 9"),
    ({"bits": 4.0}, "bits: must be an int from 2 to 8, got 4.0"),
    ({"classes": True}, "classes: must be an int >= 2, got True"),
    (
        {"seed": 2**63},
        "seed: must be an int from 0 to 9223372036854775807, got 9223372036854775808",
    ),
    ({"share": 1.5}, "share: must be a number in [0, 1], got 1.5"),
    ({"clip": 1}, "clip: must be true or false, got 1"),
    ({"layers": "conv1"}, "layers: must be a non-empty list, each entry a string, got 'conv1'"),
    ({"layers": []}, "layers: must be a non-empty list, each entry a string, got []"),
    ({"epochs": [1, -1]}, "epochs: must be a list, each entry an int >= 0, got [1, -1]"),
    ({"clip": True, "kind": "kl"}, "clip: has no effect with kind = 'kl'"),
    ({"decay": torch.zeros(9, 9)}, "decay: must be a number in [0, 1), got a Tensor"),
    (
        {"los": 1},
        "los: unknown key; allowed are kind, decay, rate, offset, bits, classes, seed, "
        "share, clip, layers, epochs",
    ),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_a_mistake_has_one_wording_wherever_it_is_made(given, message):
    with pytest.raises(InputError) as direct:
        Loss(**given)
    assert str(direct.value) == message
    with pytest.raises(InputError) as nested:
        Run(name="run", loss=given)
    assert str(nested.value) == f"loss.{message}"
    with pytest.raises(InputError) as in_a_file:
        Run.read({"name": "run", "loss": given}, "run.toml")
    assert str(in_a_file.value) == f"run.toml: loss.{message}"


def test_tables_are_named_by_their_path():
    with pytest.raises(InputError) as error:
        Run.read({"loss": 3, "widths": {"fc": {"weight": 1}, "conv.*": {"act": 4}}}, "run.toml")
    assert str(error.value) == (
        "run.toml: name: missing; must be a string like ^[a-z]+$; "
        "loss: must be a table, got 3; "
        "widths.fc.weight: must be an int from 2 to 8, got 1; "
        "widths.conv.*.weight: missing; must be an int from 2 to 8; "
        "widths.conv.*.act: unknown key; allowed are weight"
    )


def test_names_in_tables_are_strings():
    with pytest.raises(InputError, match=r"^widths: names must be strings, got 3$"):
        Run(name="run", widths={3: {"weight": 4}})
    with pytest.raises(InputError, match=r"^widths\.\[key\]: must be a table, got 3$"):
        Run(name="run", widths={"[key]": 3})


NO_NUMBERS = [
    torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(True), torch.tensor(1), Fraction(1, 2),
    Decimal("0.5"), np.array([0.5]), np.True_, 0.5j,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_numbers_are_python_s_and_numpy_s_alone(value):
    for name in ("rate", "seed"):
        with pytest.raises(InputError, match=f"^{name}: must be an? "):
            Loss(**{name: value})


def test_numpy_s_numbers_are_python_s():
    for value in (np.float16(0.5), np.longdouble(0.5), np.array(0.5)):
        assert (Loss(rate=value).rate, type(Loss(rate=value).rate)) == (0.5, float)
    assert (Loss(seed=np.array(3)).seed, Loss(rate=np.uint8(3)).rate) == (3, 3.0)


def test_ints_of_any_length_are_refused_in_a_line():
    for name in ("rate", "bits", "clip"):
        with pytest.raises(InputError, match=f"^{name}: must be .*, got a very large int$"):
            Loss(**{name: 10**5000})
    for given in ({"epochs": 10**26}, {"milestones": [10**26]}, {"epochs": 10**5000}):
        with pytest.raises(InputError, match=r": times steps_per_epoch = 200 must be < 2\*\*63"):
            Training(**given)
    assert Training(epochs=2**55, steps_per_epoch=255).steps < 2**63


def test_sequences_are_kept_as_tuples_and_numbers_as_python_s():
    given = {"layers": ["a", "b"], "epochs": np.arange(2), "decay": np.float32(0.5), "rate": 2}
    loss = Loss(bits=np.int64(3), clip=np.True_, **given)
    assert (loss.layers, loss.epochs) == (("a", "b"), (0, 1))
    numbers = (loss.bits, loss.decay, loss.rate, loss.clip)
    assert numbers == (3, 0.5, 2.0, True)
    assert [type(number) for number in numbers] == [int, float, float, bool]
    assert loss == Loss(bits=3, clip=True, decay=0.5, rate=2.0, layers=("a", "b"), epochs=[0, 1])


def test_settings_are_values():
    loss = Loss(decay=0.5)
    assert Run(name="run", loss=loss).loss is loss
    assert pickle.loads(pickle.dumps(loss)) == copy.deepcopy(loss) == loss != Loss()
    assert len({loss, Loss(decay=0.5), Loss()}) == 2
    with pytest.raises(InputError, match=r"^decay: settings are frozen; model_copy"):
        loss.decay = 0.25
    assert loss.model_copy(update={"bits": 3}) == Loss(decay=0.5, bits=3)
    with pytest.raises(InputError, match=r"^decay: must be a number in .0, 1., got 1$"):
        loss.model_copy(update={"decay": 1})


def test_what_is_changed_is_described():
    loss = Loss(decay=0.5, kind="mse", layers=["conv1"])
    assert loss.changed() == {"decay": 0.5, "layers": ("conv1",)}
    assert loss.describe() == "decay=0.5, layers=('conv1',)"
    assert Loss(layers=["*"]).describe() == "none"
    assert str(loss) == repr(loss) == "Loss(decay=0.5, layers=('conv1',))"
    assert str(Loss()) == "Loss()"


@pytest.mark.parametrize(
    ("function", "settings"),
    [(gdfq.quantize_model, Quantization), (gdfq.GDFQTrainer, Training)],
)
def test_signatures_list_the_settings(function, settings):
    parameters = inspect.signature(function).parameters
    for name, field in settings.model_fields.items():
        if name not in ("batch_size", "leaf_modules"):  # which have no default, or take classes
            assert parameters[name].default == field.default
            assert "Annotated" not in str(parameters[name])
