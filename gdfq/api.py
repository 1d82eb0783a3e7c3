"""Quantize a network, resume a run, open a run: the command line as three functions."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from gdfq.convert import QuantizedModel
from gdfq.environment import resolve_device
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.files import as_path
from gdfq.recipes import Recipe, resolve_recipe
from gdfq.runs import session
from gdfq.runs.accuracy import Evaluate
from gdfq.runs.console import Output, make_console
from gdfq.runs.folder import STUDENT
from gdfq.runs.interrupts import Interrupted, Interrupts
from gdfq.runs.notebook import NotebookProgress, in_notebook
from gdfq.runs.options import Options
from gdfq.runs.progress import SilentProgress, console_progress
from gdfq.runs.run import Run
from gdfq.runs.session import explain_end
from gdfq.sources import InMemory
from gdfq.training.checkpoint import checkpoints
from gdfq.training.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gdfq.recipes.options import RecipeOptions

SOURCE = "gdfq.quantize"  # in messages about options
Show = bool | Literal["auto"]


@torch.inference_mode(False)
@torch.enable_grad()
def quantize(
    model: nn.Module | str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    evaluate: Evaluate | None = None,
    factory: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: Show = "auto",
    checkpoint_every: float = 60.0,
    workers: int | None = None,
    tensorboard: bool = False,
    **options: Unpack[RecipeOptions],
) -> Run:
    """Quantize a trained network without its training data.

    A generator learns images from the network's batch norms and classes, and a quantized copy is
    fine-tuned on them. The run's folder is the one that ``gdfq quantize`` writes.

    Args:
        model: a trained network with batch norms, which is copied and never modified (the copy is
            in evaluation mode and float32); or the name of one, as in recipes:
            ``"torchvision:resnet18"``, ``"timm:NAME"``, ``"package.module:factory"``. None takes
            the one that ``recipe`` names.
        num_classes: of its logits. None takes as many as it has.
        image_size: height and width of its images. None takes what a named model's source says.
        recipe: whose constants are used, by name, path or as a recipe. None takes those of
            ``cifar10-resnet20`` for images below 64 pixels, and of ``imagenet-resnet18-quick``
            (20,000 steps, for a GPU) for larger ones.
        evaluate: what top-1 is measured with: batches of ``(images, labels)`` that can be iterated
            several times, such as a DataLoader's, normalized as the network takes them (labels
            ``(N,)``, or ``(N, classes)`` bool with several right classes); or a
            function that gets a network and returns its top-1 in percent. Only measures.
        factory: ``"package.module:function"`` that makes the same network without weights. With it,
            the run's folder and packed files need nothing else: ``gdfq export FOLDER``,
            ``gdfq.load(file)``. Without it, they want ``model`` again.
        out: the run's folder, which must not exist or be empty. None is a temporary one, which is
            deleted with the result; it stays where the run was interrupted.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where there is one.
        progress: False shows nothing and warns by Python's warnings; True and ``"auto"`` show a
            live bar in notebooks and terminals, and elsewhere a line an epoch.
        checkpoint_every: seconds between checkpoints.
        workers: processes that decode test images, where ``data`` names a data set.
        tensorboard: log to ``tensorboard`` in the folder.
        options: any field of a recipe by its name: ``weight_bits``, ``act_bits``, ``epochs``,
            ``seed``, ``mean``, ``std``, ``channels``, ``bits``, ``leaf_modules``, ...; see
            ``gdfq quantize --help``.

    Returns:
        The run: ``result.student`` is the quantized network.

    Raises:
        InputError: an argument or option is none of the above, or does not fit the network; the
            message names it.
        NonFiniteLossError: a loss became NaN; the message says what to change.
        KeyboardInterrupt: the run was interrupted; the message says how to resume it.
    """
    found = _recipe(model, num_classes, image_size, recipe, factory, dict(options))
    network = None if model is None or isinstance(model, str) else model
    shown = make_progress(progress)
    settings = Options(
        device=device, checkpoint_every=checkpoint_every, tensorboard=tensorboard, workers=workers,
        report=True, network=network, evaluate=evaluate,
    )  # fmt: skip
    folder = as_path("out", tempfile.mkdtemp(prefix="gdfq-") if out is None else out)
    try:
        result = _run(partial(session.quantize, found, folder, shown, settings), folder)
    except BaseException:
        if out is None and not checkpoints(folder) and not (folder / STUDENT).exists():
            rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(result, rmtree, folder, ignore_errors=True)
    return result


@torch.inference_mode(False)
@torch.enable_grad()
def resume(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    evaluate: Evaluate | None = None,
    device: str = "auto",
    progress: Show = "auto",
    checkpoint_every: float = 60.0,
    workers: int | None = None,
) -> Run:
    """Resume an interrupted run, to the result that it would have had.

    Args:
        folder: the run's, of :func:`quantize` or of ``gdfq quantize``.
        model: the network, where the run was given it as ``nn.Module`` without ``factory``; only
            its architecture counts, the weights are in the folder.
        evaluate, device, progress, checkpoint_every, workers: see :func:`quantize`; ``"auto"`` is
            the device that the run began on.

    Raises:
        InputError: the folder holds no run, or ``model`` is not its network.
        NonFiniteLossError, KeyboardInterrupt: see :func:`quantize`.
    """
    folder = as_path("folder", folder)
    shown = make_progress(progress)
    settings = Options(
        device=device, checkpoint_every=checkpoint_every, workers=workers,
        report=True, network=model, evaluate=evaluate,
    )  # fmt: skip
    return _loaded(_run(partial(session.resume, folder, shown, settings), folder))


def open_run(folder: str | Path, model: nn.Module | None = None, *, device: str = "cpu") -> Run:
    """Open the run in a folder, finished or interrupted after fine-tuning began.

    Args:
        folder: the run's, of :func:`quantize` or of ``gdfq quantize``.
        model: see :func:`resume`.
        device: where the networks are put.

    Raises:
        InputError: the folder holds no run, or no student yet, or ``model`` is not its network.
    """
    return _loaded(Run(folder, model, resolve_device(device)))


def _loaded(run: Run) -> Run:
    """Return ``run`` with its networks loaded: their errors are the caller's, here and now."""
    run.student  # noqa: B018
    return run


def _recipe(
    model: nn.Module | str | None,
    num_classes: int | None,
    image_size: int | None,
    recipe: str | Path | Recipe | None,
    factory: str | None,
    options: dict[str, Any],
) -> Recipe:
    """Return the recipe that the arguments give together."""
    named = {"num_classes": num_classes, "image_size": image_size, **options}
    given = {key: value for key, value in named.items() if value is not None}
    if not isinstance(given.get("bits", {}), dict):
        raise InputError(
            f"bits: must be a dict like {{'layer1.*': {{'weight': 8}}}}, got {given['bits']!r}"
        )
    if factory is not None and not isinstance(model, nn.Module):
        raise InputError("factory: is for a model that is given as an nn.Module")
    if isinstance(model, str):
        given["model"] = model
    elif model is not None:
        if isinstance(model, QuantizedModel):
            raise InputError("model: is quantized already; give the float network")
        if "weights" in given:
            raise InputError("weights: are for a model given by name; this one has its own")
        given["model"] = InMemory("", model).model
    found = resolve_recipe(recipe, given, SOURCE)
    return found if factory is None else found.with_options({"model": factory}, SOURCE)


def make_progress(show: Show) -> Progress:
    """Return the progress display that suits this process."""
    if show not in (True, False, "auto"):
        raise InputError(f"progress: must be True, False or 'auto', got {show!r}")
    if not show:
        return SilentProgress()
    if in_notebook():
        return NotebookProgress()
    return console_progress(make_console(Output(sys.stdout)))


def _run(run: Callable[[Interrupts], Run], folder: Path) -> Run:
    """Call ``run``; if it does not finish, say why and how to resume it."""
    main = threading.current_thread() is threading.main_thread()
    interrupts = Interrupts(*([signal.SIGINT] if main else []), kill=False)
    again = f"gdfq.resume({str(folder)!r})"
    try:
        return run(interrupts)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(explain_end(error, folder, again)) from None
    except Interrupted as error:
        raise KeyboardInterrupt(explain_end(error, folder, again)) from None
    except InputError:
        raise
    except Exception as error:
        if checkpoints(folder):
            with suppress(UserWarning):  # where warnings are errors, this one is the lesser
                warnings.warn(f"gdfq: {explain_end(error, folder, again)}", stacklevel=3)
        raise
