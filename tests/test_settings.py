"""Settings are declared once, checked strictly, and every mistake has one wording."""

import copy
import inspect
import pickle
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
    ({"decay": 1}, "decay: must be in [0, 1), got 1"),
    ({"decay": float("nan")}, "decay: must be in [0, 1), got nan"),
    ({"decay": True}, "decay: must be in [0, 1), got True"),
    ({"decay": None}, "decay: must be in [0, 1), got None"),
    ({"rate": 0}, "rate: must be > 0 and finite, got 0"),
    ({"rate": float("inf")}, "rate: must be > 0 and finite, got inf"),
    ({"rate": "1e-3"}, "rate: must be > 0 and finite, got '1e-3'"),
    ({"offset": float("-inf")}, "offset: must be finite, got -inf"),
    ({"bits": 9}, "bits: must be an int from 2 to 8, got 9"),
    ({"bits": 4.0}, "bits: must be an int from 2 to 8, got 4.0"),
    ({"classes": True}, "classes: must be an int >= 2, got True"),
    (
        {"seed": 2**63},
        "seed: must be an int from 0 to 9223372036854775807, got 9223372036854775808",
    ),
    ({"share": 1.5}, "share: must be in [0, 1], got 1.5"),
    ({"clip": 1}, "clip: must be true or false, got 1"),
    ({"layers": "conv1"}, "layers: must be a non-empty list, each entry a string, got 'conv1'"),
    ({"layers": []}, "layers: must be a non-empty list, each entry a string, got []"),
    ({"epochs": [1, -1]}, "epochs: must be a list, each entry an int >= 0, got [1, -1]"),
    ({"clip": True, "kind": "kl"}, "clip: has no effect with kind = 'kl'"),
    ({"decay": torch.zeros(9, 9)}, "decay: must be in [0, 1), got a Tensor"),
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
    with pytest.raises(ValueError, match="frozen"):
        loss.decay = 0.25


def test_what_is_changed_is_described():
    loss = Loss(decay=0.5, kind="mse", layers=["conv1"])
    assert loss.changed() == {"decay": 0.5, "layers": ("conv1",)}
    assert loss.describe() == "decay=0.5, layers=('conv1',)"
    assert Loss(layers=["*"]).describe() == "none"


@pytest.mark.parametrize(
    ("function", "settings"),
    [(gdfq.quantize_model, Quantization), (gdfq.GDFQTrainer, Training)],
)
def test_signatures_list_the_settings(function, settings):
    parameters = inspect.signature(function).parameters
    for name, field in settings.model_fields.items():
        if name not in ("batch_size", "leaf_modules"):  # which have no default, or take classes
            assert parameters[name].default == field.default
