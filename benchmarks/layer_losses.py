"""Find where MobileNetV2 and EfficientNet-Lite0 lose at 4 bits: in which layers, by what causes.

``python -m benchmarks.layer_losses NETWORK --photographs DIR --folder FOLDER`` writes
``benchmarks/results/layer-losses-NETWORK.json`` and ``.md``. No student is trained: each is
calibrated by a start on 32 images and compared with its teacher on labelled photographs. What
FOLDER has already is not measured again.

``DIR`` is the folder that ``gdfq data photographs`` wrote; weights are those of
:mod:`benchmarks.imagenet_teachers`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gdfq
from benchmarks import imagenet_teachers
from gdfq.convert import QuantizedModel
from gdfq.data.batches import Batches
from gdfq.data.imagenet import PictureFiles, Where
from gdfq.data.photographs import list_photographs, open_photographs
from gdfq.distributed import World
from gdfq.nn import QAct
from gdfq.nn.weight import dequantize
from gdfq.ops.fake_quantize import fake_quantize
from gdfq.recipes.networks import build_teacher
from gdfq.report.contents import LayerRow
from gdfq.report.layers import places
from gdfq.report.observation import Loss
from gdfq.training import Start
from gdfq.training.calibration import observe_ranges
from gdfq.training.start import sequence
from gdfq.training.start.act_ranges import Histogram, mse_bounds
from gdfq.training.start.correction import correct
from gdfq.training.start.images import Images

RESULTS = Path(__file__).parent / "results"
NUM_CLASSES = 1000
SIZE = 128  # of all images
CALIBRATION, BATCH = 32, 16  # images
ALONE = 32  # photographs on which layers are quantized one by one
STEPS = 60  # of the generator
MINMAX = Start()
MSE = Start(act_ranges="mse", weight_ranges="mse")
DEFAULT = Start(act_ranges="mse", weight_ranges="mse", bn_reestimate=True)
GROUPS = {
    "first": "first convolution", "expansion": "1x1 expansions", "depthwise": "depthwise",
    "projection": "1x1 projections (linear bottlenecks)", "head": "last 1x1 convolution",
    "classifier": "classifier",
}  # fmt: skip
WHOSE = {"both": "weights and activations", "act": "activations", "weight": "weights"}


@dataclass(frozen=True)
class Case:
    """A student that is calibrated and not trained.

    Attributes:
        ranges: images that set its activation ranges, a key of :attr:`Networks.images`.
        norms: images that re-estimate its batch norms.
        float_ranges: set activation ranges on the float network's values, not on the student's.
        options: of :func:`gdfq.quantize_model`.
    """

    weight_bits: int = 4
    act_bits: int = 4
    start: Start = DEFAULT
    ranges: str = "photographs"
    norms: str = "photographs"
    float_ranges: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Networks:
    """A teacher, images to calibrate its students on, and photographs to compare them on.

    Args:
        name: ``"mobilenet_v2"`` or ``"efficientnet_lite0"``.
        photographs: folder of them.
        folder: keeps the generated images.
    """

    def __init__(self, name: str, photographs: Path, folder: Path) -> None:
        _, loaded = build_teacher(imagenet_teachers.recipe(name))
        self.teacher = loaded.network
        shown = replace(
            loaded.preprocessing,
            image_size=SIZE,
            resize=SIZE * 256 // 224,
            interpolation="bilinear",
        )
        read = partial(Batches, preprocessing=shown, batch_size=BATCH, workers=0)
        batches = list(read(open_photographs(photographs)))
        self.photographs = torch.cat([images for images, _ in batches])
        self.right = torch.cat([right for _, right in batches])
        white = (1 - torch.tensor(shown.mean)) / torch.tensor(shown.std)
        self.full = is_full(self.photographs, white)
        self.logits = logits_of(self.teacher, self.photographs)
        self.rows = [place.row for place in places(gdfq.quantize_model(self.teacher))]
        unlabelled = torch.cat([images for images, _ in read(_unlabelled(photographs))])
        noise = torch.randn(CALIBRATION, 3, SIZE, SIZE, generator=torch.manual_seed(0))
        self.images: dict[str, Sequence[Tensor]] = {
            "photographs": evenly(unlabelled).split(BATCH),
            "full-frame photographs": evenly(unlabelled[is_full(unlabelled, white)]).split(BATCH),
            "noise": noise.split(BATCH),
        }
        self.generated = folder / f"{name}-generated.pt"

    def calibration(self, name: str) -> Images:
        """Return the images of this name."""
        if name == "generated" and not self.generated.exists():
            torch.save(self.generate(), self.generated)
        if name == "generated":
            self.images[name] = torch.load(self.generated)
        return Images(
            lambda images, _: images.clone(), [(x, x) for x in self.images[name]], World()
        )

    def generate(self) -> list[Tensor]:
        """Return the images of a generator after a short warm-up."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = gdfq.models.Generator(NUM_CLASSES, SIZE, conditional_bn=True, width=32)
            trainer = gdfq.GDFQTrainer(
                self.teacher, gdfq.quantize_model(self.teacher), generator, NUM_CLASSES, BATCH,
                epochs=STEPS, warmup_epochs=STEPS, steps_per_epoch=1, schedule="constant",
                memory_format="channels_last", seed=0,
            )  # fmt: skip
            for _ in range(STEPS):
                trainer.step()
            with torch.no_grad():
                return list(trainer.images.batches(CALIBRATION // BATCH))

    @torch.no_grad()
    def student(self, case: Case) -> QuantizedModel:
        """Return a calibrated student."""
        student = gdfq.quantize_model(self.teacher, case.weight_bits, case.act_bits, **case.options)
        sequence.prepare(case.start, student)
        observe_minmax = partial(observe_ranges, student, None)
        ranges, norms = self.calibration(case.ranges), self.calibration(case.norms)
        if case.float_ranges:
            start = case.start.model_copy(update={"bn_reestimate": False, "act_ranges": "minmax"})
            sequence.begin(start, student, self.teacher, ranges, observe_minmax)
            self.set_float_ranges(student, ranges)
            correct(student, self.teacher, norms, spread=True)
        elif case.ranges == case.norms:
            sequence.begin(case.start, student, self.teacher, ranges, observe_minmax)
        else:  # the same, with other images for the batch norms
            start = case.start.model_copy(update={"bn_reestimate": False})
            for _ in range(2):
                sequence.begin(start, student, self.teacher, ranges, observe_minmax)
                correct(student, self.teacher, norms, spread=True)
        return student

    @torch.no_grad()
    def float_values(self, images: Images) -> dict[str, Tensor]:
        """Return what the teacher computes at each quantizer's place, ``(N, C, ...)``."""
        seen: dict[str, list[Tensor]] = {row.act: [] for row in self.rows if row.act}
        with ExitStack() as hooks:
            for act, found in seen.items():
                hook = partial(_keep, found)
                handle = self.teacher.get_submodule(act).register_forward_hook(hook)
                hooks.callback(handle.remove)
            images.through(self.teacher)
        return {act: torch.cat(found) for act, found in seen.items()}

    def set_float_ranges(self, student: QuantizedModel, images: Images) -> None:
        """Set MSE-optimal bounds on what the teacher computes at each quantizer's place."""
        for act, values in self.float_values(images).items():
            quantizer: Any = student.get_submodule(act)
            lo, hi = float_bounds(values, quantizer)
            quantizer.lo.copy_(lo)
            quantizer.hi.copy_(hi)

    @torch.no_grad()
    def activations(self) -> list[dict[str, Any]]:
        """Measure the float network's activations on the calibration's photographs.

        For each: MSE-optimal upper bound at 4 bits, SQNR with it, share of the positive values that
        round to 0, share of those above the 99.9th percentile that a tenth of the images have, and
        the median over channels of three standard deviations above the mean, by the batch norm.
        """
        student = gdfq.quantize_model(self.teacher)
        values_of = self.float_values(self.calibration("photographs"))
        records = []
        for row in self.rows:
            if not row.act:
                continue
            values, quantizer = values_of[row.act], student.get_submodule(row.act)
            assert isinstance(quantizer, QAct)
            lo, hi = float_bounds(values, quantizer)
            quantized, loss = fake_quantize(values, lo, hi, quantizer.act_bits), Loss()
            loss.add(values, quantized)
            positive = values > 0
            large = (values > _histogram(values).percentile(99.9)).flatten(1).sum(1)
            records.append({
                "name": row.act, "group": self.group(row), "high": float(hi), "sqnr": loss.sqnr,
                "zeroed": float(((quantized == 0) & positive).sum() / positive.sum()),
                "few": float(large.topk(len(large) // 10).values.sum() / large.sum().clamp(min=1)),
                "reach": float(self.reach(row).median()),
            })  # fmt: skip
        return records

    def reach(self, row: LayerRow) -> Tensor:
        """Return three standard deviations above each channel's mean, up to 6, ``(C,)``."""
        norm: Any = self.teacher.get_submodule(row.norm)
        return (norm.bias + 3 * norm.weight.abs()).detach().clamp(max=6)

    def score(self, network: nn.Module) -> dict[str, float]:
        """Compare ``network`` with the teacher: rates in percent, KL in nats."""
        found = logits_of(network, self.photographs)
        log_probabilities = found.log_softmax(1), self.logits.log_softmax(1)
        kl = F.kl_div(*log_probabilities, reduction="batchmean", log_target=True)
        top1 = self.right.gather(1, found.argmax(1, keepdim=True)).float()
        same = (found.argmax(1) == self.logits.argmax(1)).float()
        return {
            "top1": 100 * float(top1.mean()), "agreement": 100 * float(same.mean()),
            "full": 100 * float(same[self.full].mean()), "kl": float(kl),
            "error": logit_error(found, self.logits),
        }  # fmt: skip

    def group(self, row: LayerRow) -> str:
        """Return the key of :data:`GROUPS` that a layer belongs to."""
        named = {"first": 0, "head": -2, "classifier": -1}
        ends = {self.rows[i].name: key for key, i in named.items()}
        inner = (
            "projection"
            if not row.act
            else "depthwise"
            if row.shape and row.shape[1] == 1
            else "expansion"
        )
        return ends.get(row.name, inner)

    def widths(self, rows: Iterable[LayerRow], whose: str = "both", bits: int = 8) -> dict:
        """Return ``bits`` of :func:`gdfq.quantize_model` for ``rows``; ``whose``: weight or act."""
        widths: dict[str, dict[str, int]] = {}
        for row in rows:
            if whose != "act":
                widths.setdefault(row.name, {})["weight"] = bits
            if whose != "weight" and row.act:
                widths.setdefault(row.act, {})["act"] = bits
        return widths

    # ---- layer by layer ----

    @torch.no_grad()
    def layers(self) -> list[dict[str, Any]]:
        """Measure every layer: alone in the teacher, and in whole students."""
        student = self.student(Case())
        ours, minmax = self.outputs(student), self.outputs(self.student(Case(start=MINMAX)))
        return [
            {
                "name": row.name, "group": self.group(row), "shape": row.shape, "act": row.act,
                **self.alone(row, student), **ours[row.name].figures(),
                "output_sqnr_minmax": minmax[row.name].figures()["output_sqnr"],
            }
            for row in self.rows
        ]  # fmt: skip

    def alone(self, row: LayerRow, student: QuantizedModel) -> dict[str, Any]:
        """Return what quantizing one layer's weight, or its activation, does to the teacher.

        Relative logit errors; and of the quantizers themselves: SQNR in dB, the upper bound, the
        share of values that it clips, and of channels that hardly reach its first level.
        """
        layer: Any = self.teacher.get_submodule(row.name)
        own: Any = student.get_submodule(row.name)
        trained = layer.weight.clone()
        layer.weight.copy_(dequantize(*own.weight_codes()))
        weight = Loss()
        weight.add(trained, layer.weight)
        figures = {"weight_sqnr": weight.sqnr, "weight_error": self.error()}
        layer.weight.copy_(trained)
        if not row.act:
            return figures
        quantizer: Any = student.get_submodule(row.act)
        act = Loss()
        watching = quantizer.register_forward_hook(act.hook)
        replacing = self.teacher.get_submodule(row.act).register_forward_hook(
            lambda module, inputs, output: quantizer(output)
        )
        figures["act_error"] = self.error()
        replacing.remove()
        watching.remove()
        step = float(quantizer.hi - quantizer.lo) / (2**quantizer.act_bits - 1)
        narrow = float((self.reach(row) < step / 2).float().mean())
        return {
            **figures, "act_sqnr": act.sqnr, "clipped": act.clipped, "high": float(quantizer.hi),
            "narrow": narrow,
        }  # fmt: skip

    def error(self) -> float:
        """Return the relative logit error of the teacher as it is now, on some photographs."""
        found = logits_of(self.teacher, evenly(self.photographs, ALONE))
        return logit_error(found, evenly(self.logits, ALONE))

    def outputs(self, student: nn.Module) -> dict[str, Compared]:
        """Compare every layer's output, behind its batch norm, with the teacher's."""
        compared = {row.name: Compared() for row in self.rows}
        theirs: dict[str, Tensor] = {}

        def look(row: LayerRow, hooks: ExitStack) -> None:
            def keep(values: Tensor) -> None:
                theirs[row.name] = values.clone()  # which may be changed in place

            def compare(values: Tensor) -> None:
                compared[row.name].add(theirs[row.name], values)

            for network, see in ((self.teacher, keep), (student, compare)):
                module = network.get_submodule(row.act or row.norm or row.name)
                handle = (
                    module.register_forward_pre_hook(lambda m, i, see=see: see(i[0]))
                    if row.act
                    else module.register_forward_hook(lambda m, i, o, see=see: see(o))
                )
                hooks.callback(handle.remove)

        with ExitStack() as hooks:
            for row in self.rows:
                look(row, hooks)
            for images in evenly(self.photographs, ALONE).split(BATCH):
                self.teacher(images.clone())
                student(images.clone())
        return compared


class Compared:
    """A layer's outputs in teacher and student: moments per channel over all images."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0

    def add(self, theirs: Tensor, own: Tensor) -> None:
        """Take outputs ``(N, C, ...)`` into account."""
        t, s = (x.double().movedim(1, 0).flatten(1) for x in (theirs, own))
        count = torch.full((len(t),), float(t.shape[1]))
        moments = count, t.sum(1), s.sum(1), t.square().sum(1), s.square().sum(1), (t * s).sum(1)
        self.sums = self.sums + torch.stack([m.double() for m in moments])

    def figures(self) -> dict[str, float]:
        """Return the SQNR in dB, and the error's share that a scale and shift a channel remove."""
        assert isinstance(self.sums, Tensor)
        n, t, s, tt, ss, ts = self.sums
        error = tt - 2 * ts + ss
        var_t, var_s, cov = tt / n - (t / n) ** 2, ss / n - (s / n) ** 2, ts / n - t * s / n**2
        left = n * (var_t - cov**2 / var_s.clamp(min=1e-12))
        return {
            "output_sqnr": 10 * math.log10(float(tt.sum() / error.sum())),
            "affine": 1 - float(left.sum() / error.sum()),
        }


def _keep(found: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    found.append(output.clone())


def _histogram(values: Tensor) -> Histogram:
    histogram = Histogram(values.min(), values.max())
    histogram.add(values)
    return histogram


def float_bounds(values: Tensor, quantizer: QAct) -> tuple[Tensor, Tensor]:
    """Return the MSE-optimal bounds of ``quantizer`` over ``values``."""
    return mse_bounds(_histogram(values), quantizer)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits ``(N, classes)``; ``images`` stay as they are."""
    return torch.cat([network(batch.clone()) for batch in images.split(BATCH)])


def logit_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by that of ``expected`` about its mean."""
    return float((found - expected).norm() / (expected - expected.mean(0)).norm())


def is_full(images: Tensor, white: Tensor) -> Tensor:
    """Return which of ``(N, 3, H, W)`` have less than a tenth of white pixels, ``(N,)`` bool."""
    return (images > white.view(3, 1, 1) - 0.02).all(1).float().mean((1, 2)) < 0.1


def evenly(images: Tensor, count: int = CALIBRATION) -> Tensor:
    """Return ``count`` of ``images``, evenly from all."""
    return images[torch.arange(count) * len(images) // count]


def _unlabelled(folder: Path) -> PictureFiles:
    """Return the photographs without a label."""
    paths = [path for path, classes in list_photographs(folder) if not classes]
    places = [Where(path, str(path), path.stat().st_size) for path in paths]
    return PictureFiles("unlabelled", places, [0] * len(places), NUM_CLASSES)


# ---- students ----


def cases(networks: Networks, layers: list[dict[str, Any]]) -> dict[str, dict[str, Case]]:
    """Return the students of each table, by its title and their names."""
    rows: dict[str, list[LayerRow]] = {key: [] for key in GROUPS}
    for row in networks.rows:
        rows[networks.group(row)].append(row)
    eight = worst(layers, 10)
    return {
        "Weights or activations, and the start": {
            "W4A4, default": Case(),
            "W4A8, default": Case(4, 8),
            "W8A4, default": Case(8, 4),
            "W4A4, min/max": Case(start=MINMAX),
            "W4A8, min/max": Case(4, 8, MINMAX),
            "W8A4, min/max": Case(8, 4, MINMAX),
            "W8A8, default": Case(8, 8),
        },
        "The images": {
            "generated": Case(ranges="generated", norms="generated"),
            "full-frame photographs": Case(
                ranges="full-frame photographs", norms="full-frame photographs"
            ),
            "ranges of generated images, batch norms of photographs": Case(ranges="generated"),
            "ranges of photographs, batch norms of generated images": Case(norms="generated"),
            "noise": Case(ranges="noise", norms="noise"),
        },
        "Ranges of the float network's activations": {
            "photographs": Case(float_ranges=True),
            "full-frame photographs": Case(
                ranges="full-frame photographs", norms="full-frame photographs", float_ranges=True
            ),
            "generated": Case(ranges="generated", norms="generated", float_ranges=True),
            "photographs, W8A4": Case(8, 4, float_ranges=True),
            "photographs, and 8 bits for the 10 worst": replace(eight, float_ranges=True),
            "generated, and 8 bits for the 10 worst": replace(
                eight, ranges="generated", norms="generated", float_ranges=True
            ),
        },
        "Other settings": {
            "8 bits for the 10 worst weights and the 10 worst activations": eight,
            "batch norms as stored": Case(start=_changed(bn_reestimate=False)),
            "means alone (bias_correction)": Case(
                start=_changed(bn_reestimate=False, bias_correction=True)
            ),
            "act_ranges = minmax": Case(start=_changed(act_ranges="minmax")),
            "act_ranges = percentile": Case(start=_changed(act_ranges="percentile")),
            "weight_ranges = minmax": Case(start=_changed(weight_ranges="minmax")),
            "rounding = flip": Case(start=_changed(rounding="flip")),
            "dynamic_ranges = act": Case(
                start=_changed(act_ranges="minmax"), options={"dynamic_ranges": "act"}
            ),
            "first_last_bits = 8": Case(options={"first_last_bits": 8}),
            "quantize_inputs": Case(options={"quantize_inputs": True}),
        },
        "8 bits in one kind of layer": {
            f"{name}: {WHOSE[whose]}": Case(options={"bits": networks.widths(rows[key], whose)})
            for whose in WHOSE
            for key, name in GROUPS.items()
            if whose == "both" or key in ("expansion", "depthwise")
        },
    }


def _changed(**settings: Any) -> Start:
    return Start(**{**DEFAULT.changed(), **settings})


def worst(layers: list[dict[str, Any]], count: int) -> Case:
    """Return the student with 8 bits where one layer alone does most harm, ``count`` times each."""
    bits: dict[str, dict[str, int]] = {}
    for key, path, whose in (("weight_error", "name", "weight"), ("act_error", "act", "act")):
        for layer in sorted(layers, key=lambda layer: -layer.get(key, 0))[:count]:
            bits.setdefault(layer[path], {})[whose] = 8
    return Case(options={"bits": bits})


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("mobilenet_v2", "efficientnet_lite0"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="keeps what is measured")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    networks = Networks(options.network, options.photographs, options.folder)
    out = options.folder / f"layer-losses-{options.network.replace('_', '-')}.json"
    record = json.loads(out.read_text()) if out.exists() else {"students": {}}

    def measured(kept: dict[str, Any], key: str, measure: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = measure()
            out.write_text(json.dumps(record, indent=1) + "\n")
            print(key, kept[key] if isinstance(kept[key], dict) else "", flush=True)
        return kept[key]

    def student(case: Case) -> dict[str, float]:
        return networks.score(networks.student(case))

    record["photographs"] = len(networks.right)
    record["full"] = int(networks.full.sum())
    measured(record, "teacher", lambda: networks.score(networks.teacher))
    measured(record, "layers", networks.layers)
    measured(record, "activations", networks.activations)
    for title, named in cases(networks, record["layers"]).items():
        scores = record["students"].setdefault(title, {})
        for name, case in named.items():
            measured(scores, name, partial(student, case))
    (RESULTS / out.name).write_text(out.read_text())
    (RESULTS / out.name).with_suffix(".md").write_text(markdown(options.network, record))
    draw(RESULTS.parents[1] / "docs" / "images" / "layer-losses.png")


# ---- tables ----


def markdown(network: str, record: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [
        f"# {network} at 4 bits, layer by layer",
        "",
        f"Written by `python -m benchmarks.layer_losses {network}`. Students that are calibrated "
        f"on {CALIBRATION} images",
        f"and not trained, compared with their teacher on {record['photographs']} labelled "
        f"photographs of {SIZE}x{SIZE}; the teacher's",
        f"top-1 is {record['teacher']['top1']:.1f}%. Logit error: the norm of the difference "
        "divided by that of the teacher's",
        "logits about their mean. Students are W4A4, with the default start, calibrated on other",
        "photographs, except for what their names say. Generated images are of a generator after "
        f"{STEPS} steps.",
    ]
    head = ("student", "top-1 %", "agreement %", "on full frames", "KL", "logit error")
    for title, named in record["students"].items():
        body = [
            (name, *(f"{s[key]:.1f}" for key in ("top1", "agreement", "full")),
             *(f"{s[key]:.2f}" for key in ("kl", "error")))
            for name, s in named.items()
        ]  # fmt: skip
        lines += ["", f"## {title}", "", *_table(head, body)]
    lines += [
        "",
        "## Layers",
        "",
        f"On {ALONE} of the photographs, with the default start unless min/max is said.",
        "",
        "* weight, activation: the quantizer's SQNR; alone: the logit error if nothing else is",
        "  quantized",
        "* clipped: values beyond the upper bound; narrow: channels of which even three standard",
        "  deviations above the mean, by the batch norm, round to 0",
        "* output: SQNR behind the batch norm in the whole student; affine: the share of that",
        "  error which a scale and a shift of each channel would remove",
        "",
        *_layer_table(record["layers"]),
    ]
    lines += [
        "",
        "## Activations of the float network",
        "",
        "On the photographs of the calibration, quantized with the bounds that fit them best.",
        "",
        "* zeroed: positive values that round to 0; few: values above the 99.9th percentile that a",
        "  tenth of the images have; reach: three standard deviations above a channel's mean, by",
        "  the batch norm, median over channels",
        "",
    ]
    keys = ("high", "sqnr", "zeroed", "few", "reach")
    body = [
        (f"`{each['name']}`", *(f"{each[key]:.3g}" for key in keys))
        for each in record["activations"]
    ]
    lines += _table(("quantizer", "upper bound", "SQNR, dB", "zeroed", "few", "reach"), body)
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _layer_table(layers: list[dict[str, Any]]) -> list[str]:
    keys = {
        "weight_sqnr": "weight, dB", "weight_error": "alone", "act_sqnr": "activation, dB",
        "act_error": "alone", "clipped": "clipped", "high": "upper bound", "narrow": "narrow",
        "output_sqnr_minmax": "output, min/max, dB", "output_sqnr": "default, dB",
        "affine": "affine",
    }  # fmt: skip
    rows = [
        (f"`{layer['name']}`", GROUPS[layer["group"]],
         *(f"{layer[key]:.3g}" if layer.get(key) is not None else "" for key in keys))
        for layer in layers
    ]  # fmt: skip
    return _table(("layer", "kind", *keys.values()), rows)


def draw(out: Path) -> None:
    """Draw each layer's harm alone, and the outputs' SQNR, of all networks that were measured."""
    from matplotlib.figure import Figure

    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("layer-losses-*")
               if path.suffix == ".json"}  # fmt: skip
    figure = Figure(figsize=(10, 3.2 * len(records)), dpi=120, layout="constrained")
    panels = figure.subplots(len(records), 2, squeeze=False)
    for (alone, output), (name, record) in zip(panels, sorted(records.items()), strict=True):
        layers = record["layers"]
        network = name.removeprefix("layer-losses-")
        for key, label, colour in (
            ("weight_error", "weights", "#1b6ca8"),
            ("act_error", "activations", "#d9822b"),
        ):
            alone.plot(
                [layer.get(key, math.nan) for layer in layers],
                "o",
                color=colour,
                label=label,
                markersize=4,
            )
        alone.set_title(f"{network}: logit error of one layer at 4 bits, default start", fontsize=9)
        for key, label, colour in (
            ("output_sqnr_minmax", "min/max", "#7f7f7f"), ("output_sqnr", "default", "#6a994e"),
        ):  # fmt: skip
            values = [layer[key] for layer in layers]
            output.plot(values, "o-", color=colour, label=label, markersize=3)
        output.set_title(f"{network}: SQNR of each layer's output, W4A4, dB", fontsize=9)
        for axes in (alone, output):
            axes.set_xlabel("layer, in order of execution")
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main()
