"""Test sets in every form people have them in, made up and small."""

import codecs
import io
import os
import pickle
import re
import struct
import tarfile
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from gdfq.data import Batches, open_test_set, top1
from gdfq.data.arrays import ArraySet
from gdfq.data.batches import resize_and_crop
from gdfq.data.imagenet import DEVKIT, TAR, TRUTH
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.recipes import load_recipe
from gdfq.report.contents import Result
from gdfq.runs.accuracy import MeasureOnData
from gdfq.sources import Preprocessing

SMALL = Preprocessing(10, 32, 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 32)
LARGE = Preprocessing(3, 16, 3, [0.0] * 3, [1.0] * 3, 20)


def pixels(number, shape=(32, 32, 3)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


# ---- CIFAR ----


class Python2(pickle._Pickler):
    """Writes strings as Python 2 did, whose pickles the data sets are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode()
        short = len(raw) < 256
        self.write(b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw)))
        self.write(raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def pickled(content, python=2, protocol=4):
    if python == 3:
        return pickle.dumps(content, protocol)
    file = io.BytesIO()
    Python2(file, protocol=2).dump(content)
    # The module's name at the time.
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_file(count=5, python=2):
    """Bytes of a file of the data sets, and its images ``(N, H, W, 3)``."""
    images = pixels(1, (count, 32, 32, 3))
    labels = list(range(count))
    content = {
        "batch_label": "testing batch 1 of 1",
        "labels": labels,
        "fine_labels": labels,
        "data": images.transpose(0, 3, 1, 2).reshape(count, -1),
    }
    return pickled(content, python), images


FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "test_batch"),
    "cifar100": ("cifar-100-python", "test"),
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    "form",
    [
        "in root", "extracted", "archive", "from the environment", "the archive itself",
        "the file itself", "one folder deeper", "archive one folder deeper", "unpacked to a tar",
    ],
)  # fmt: skip
def test_cifar(tmp_path, monkeypatch, name, form):
    raw, images = cifar_file(python=3 if form == "archive" else 2)
    folder, file = FOLDERS[name]
    path = str(tmp_path)
    top = tmp_path / "downloads" if form.endswith("deeper") else tmp_path
    if "archive" in form or form == "unpacked to a tar":
        top.mkdir(exist_ok=True)
        zipped = form != "unpacked to a tar"
        packed = top / f"{folder.replace('batches-py', 'python')}.tar{'.gz' if zipped else ''}"
        with tarfile.open(packed, "w:gz" if zipped else "w") as tar:
            add(tar, f"{folder}/._{file}", b"of macOS")
            add(tar, f"{folder}/{file}", raw)
        if form == "the archive itself":
            path = str(packed)
    else:
        (top / folder).mkdir(parents=True)
        (top / folder / file).write_bytes(raw)
        if form == "the file itself":
            path = str(top / folder / file)
    if form == "in root":
        path = str(tmp_path / folder)
    if form == "from the environment":
        monkeypatch.setenv("GDFQ_DATA", path)
        path = None
    found = open_test_set(name, path, 10)
    assert len(found) == 5
    picture, label = found[3]
    assert label == 3
    assert np.array_equal(np.array(picture), images[3])
    batches = Batches(found, SMALL, batch_size=2)
    assert (len(batches), batches.pictures) == (3, 5)
    whole = torch.cat([x for x, _ in batches])
    expected = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SMALL.mean, SMALL.std))
    assert torch.equal(whole, (expected - mean) / std)
    assert torch.cat([y for _, y in batches]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_rewritten_by_any_protocol(tmp_path, protocol, keys):
    images = pixels(2, (3, 3072))
    images[0, :256] = range(256)
    labels = list(np.arange(3))
    for data in (images, np.asfortranarray(images)):
        content = {"data": data, "labels": labels, "filenames": [b"a\xff.png", b""]}
        raw = pickled({keys(key): value for key, value in content.items()}, 3, protocol)
        (tmp_path / "test_batch").write_bytes(raw)
        found = open_test_set("cifar10", str(tmp_path), 10)
        assert [found[i][1] for i in range(3)] == [0, 1, 2]
        for picture, expected in zip((found[i][0] for i in range(3)), images, strict=True):
            chw = np.array(picture).transpose(2, 0, 1)
            assert np.array_equal(chw.reshape(-1), expected)


class Encoding:
    def __reduce__(self):
        return codecs.encode, ("a", "rot13")


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


CIFAR_BAD = {
    "no images": lambda p: pickled({"data": pixels(1, (0, 3072)), "labels": []}),
    "labels beyond": lambda p: pickled({"data": pixels(1, (2, 3072)), "labels": [1, 10]}),
    "labels below": lambda p: pickled({"data": pixels(1, (2, 3072)), "labels": [-1, 1]}),
    "hostile": lambda p: pickle.dumps({b"data": Evil(p / "marker")}, 2),
    "another encoding": lambda p: pickle.dumps({b"data": Encoding()}, 2),
    "truncated": lambda p: cifar_file()[0][:-100],
    "empty": lambda p: b"",
    "garbage": lambda p: bytes(range(256)),
    "no labels": lambda p: pickled({"data": pixels(1, (2, 3072))}),
    "a list": lambda p: pickled([1, 2]),
    "fewer labels": lambda p: pickled({"data": pixels(1, (2, 3072)), "labels": [1]}),
    "other size": lambda p: pickled({"data": pixels(1, (2, 3000)), "labels": [1, 2]}),
}


@pytest.mark.parametrize("case", CIFAR_BAD)
def test_cifar_files_that_are_none(tmp_path, case):
    (tmp_path / "test_batch").write_bytes(CIFAR_BAD[case](tmp_path))
    with pytest.raises(InputError, match=r"data: .*(test_batch|cifar10)"):
        open_test_set("cifar10", str(tmp_path), 10)
    assert not (tmp_path / "marker").exists()
    if case == "hostile":  # which an ordinary unpickler would have done
        pickle.loads((tmp_path / "test_batch").read_bytes())
        assert (tmp_path / "marker").exists()


def test_an_archive_of_another_set(tmp_path):
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        add(tar, "cifar-100-python/test", cifar_file()[0])
    with pytest.raises(InputError, match=r"tar.gz has no cifar-10-batches-py/test_batch$"):
        open_test_set("cifar10", str(tmp_path / "cifar-100-python.tar.gz"), 10)
    with pytest.raises(InputError, match=r"data: there is no .*nowhere; set data_path"):
        open_test_set("cifar10", str(tmp_path / "nowhere"), 10)


# ---- ImageNet ----

CLASSES = ("n01440764", "n01443537", "n02102040")


def jpeg(number, size=(40, 30), mode="RGB"):
    shape = (size[1], size[0], 3)
    # Smooth, so that JPEG keeps it.
    y, x = np.mgrid[: size[1], : size[0]]
    image = np.broadcast_to(((x + y + 37 * number) % 256)[..., None], shape).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG")
    return file.getvalue()


def add(tar, name, raw):
    member = tarfile.TarInfo(name)
    member.size = len(raw)
    tar.addfile(member, io.BytesIO(raw))


def class_folders(root):
    for c, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(2):
            # Gray and CMYK ones are among the real ones.
            mode = ("RGB", "L", "CMYK")[c]
            (root / name / f"{i}.JPEG").write_bytes(jpeg(2 * c + i, mode=mode))
    (root / CLASSES[0] / "notes.txt").write_text("no picture")


def tar_of_folders(path):
    with tarfile.open(path, "w") as tar:
        add(tar, "val/._n01440764", b"of macOS")
        add(tar, f"val/{CLASSES[0]}/._0.JPEG", b"of macOS")
        for c in (2, 0, 1):  # in no order
            for i in range(2):
                add(
                    tar, f"val/{CLASSES[c]}/{i}.JPEG", jpeg(2 * c + i, mode=("RGB", "L", "CMYK")[c])
                )


def devkit(folder, truth, packed=True):
    """A devkit whose numbers of classes are in another order than their WordNet names."""
    scipy_io = pytest.importorskip("scipy.io")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    numbers = {CLASSES[0]: 3, CLASSES[1]: 1, CLASSES[2]: 2}
    rows = [(number, name, name, 0) for name, number in numbers.items()]
    rows.append((4, "n00000001", "animal", 3))  # a class above others is none
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    lines = "".join(f"{numbers[CLASSES[c]]}\n" for c in truth).encode()
    top = DEVKIT.removesuffix(".tar.gz")
    if packed:
        with tarfile.open(folder / DEVKIT, "w:gz") as tar:
            add(tar, f"{top}/data/{TRUTH}", lines)
            add(tar, f"{top}/data/meta.mat", meta.getvalue())
    else:
        (folder / top / "data").mkdir(parents=True)
        (folder / top / "data" / TRUTH).write_bytes(lines)
        (folder / top / "data" / "meta.mat").write_bytes(meta.getvalue())


def flat_tar(path):
    with tarfile.open(path, "w") as tar:
        for number in (1, 0, 3, 2, 5, 4):
            mode = ("RGB", "L", "CMYK")[number // 2]
            add(tar, f"ILSVRC2012_val_{number + 1:08d}.JPEG", jpeg(number, mode=mode))


def make_imagenet(form, root):
    """The same six pictures of three classes in one of the forms; the path to give."""
    if form == "folders":
        class_folders(root)
    elif form == "folders in val":
        class_folders(root / "val")
    elif form in ("a folder deeper", "two folders deeper", "beside train"):
        deeper = {"a folder deeper": "set", "two folders deeper": "a/b", "beside train": "set/val"}
        class_folders(root / deeper[form])
        if form == "beside train":
            class_folders(root / "set" / "train")
    elif form == "links":
        class_folders(root / "real")
        (root / "links").mkdir()
        for name in CLASSES:
            (root / "links" / name).symlink_to(root / "real" / name)
            (root / "real" / name / "circle").symlink_to(root / "real")
        return root / "links"
    elif form == "with what systems leave":
        class_folders(root)
        for place in (root, root / CLASSES[0]):
            for name in ("@eaDir", ".thumbnails", "__MACOSX", "#snapshot", "~snapshot"):
                (place / name).mkdir()
                (place / name / "0.jpg").write_bytes(b"none")
            for name in ("._0.JPEG", ".DS_Store", "Thumbs.db"):
                (place / name).write_bytes(b"none")
    elif form.startswith("flat"):
        folder = "val" if form == "flat in val" else "ILSVRC2012_img_val"
        (root / folder).mkdir()
        for number in range(6):
            raw = jpeg(number, mode=("RGB", "L", "CMYK")[number // 2])
            (root / folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG").write_bytes(raw)
        devkit(root, [0, 0, 1, 1, 2, 2], packed=form != "flat and unpacked devkit")
        return root / folder if form == "flat itself" else root
    elif form == "tar a folder deeper":
        (root / "set").mkdir()
        flat_tar(root / "set" / TAR)
        devkit(root, [0, 0, 1, 1, 2, 2])
    elif form == "tar of folders":
        tar_of_folders(root / "mine.tar")
        return root / "mine.tar"
    else:
        flat_tar(root / TAR)
        devkit(root, [0, 0, 1, 1, 2, 2], packed=form != "tar and unpacked devkit")
        if form == "the tar itself":
            return root / TAR
    return root


FORMS = [
    "folders", "folders in val", "tar of folders", "tar and devkit", "tar and unpacked devkit",
    "the tar itself", "tar a folder deeper", "a folder deeper", "two folders deeper",
    "beside train", "links", "with what systems leave", "flat", "flat in val", "flat itself",
    "flat and unpacked devkit",
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "workers"), [*((form, 0) for form in FORMS), *((form, 2) for form in FORMS[:6])]
)
def test_imagenet(tmp_path, form, workers):
    path = make_imagenet(form, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = open_test_set("imagenet", str(path), 3)
    batches = Batches(found, LARGE, batch_size=4, workers=workers)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.shape == (6, 3, 16, 16)
    for number, image in enumerate(images):
        mode = ("RGB", "L", "CMYK")[number // 2]
        picture = Image.open(io.BytesIO(jpeg(number, mode=mode)))
        expected = np.array(resize_and_crop(picture, LARGE))
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


def test_ranks_share_the_pictures(tmp_path):
    class_folders(tmp_path)
    found = open_test_set("imagenet", str(tmp_path), 3)
    parts = [Batches(found, LARGE, 2, workers=0, rank=rank, ranks=4) for rank in range(4)]
    assert [part.pictures for part in parts] == [2, 2, 1, 1]
    labels = [[int(y) for _, ys in part for y in ys] for part in parts]
    assert labels == [[0, 2], [0, 2], [1], [1]]


def test_resizing_is_torchvision_s():
    transforms = pytest.importorskip("torchvision.transforms")
    modes = transforms.InterpolationMode
    for size in ((40, 30), (31, 57), (20, 20)):
        picture = Image.fromarray(pixels(3, (size[1], size[0], 3)))
        for name in ("nearest", "bilinear", "bicubic"):
            wanted = transforms.Compose(
                [transforms.Resize(20, modes(name)), transforms.CenterCrop(15)]
            )(picture)
            how = Preprocessing(3, 15, 3, [0.0] * 3, [1.0] * 3, 20, "center", name)
            assert np.array_equal(np.array(resize_and_crop(picture, how)), np.array(wanted))
        how = Preprocessing(3, 15, 1, [0.0], [1.0], 20, "squash")
        assert resize_and_crop(picture, how).size == (15, 15)
        assert resize_and_crop(picture, how).mode == "L"


def flat_without_devkit(root):
    flat_tar(root / TAR)


def too_few_labels(root):
    flat_tar(root / TAR)
    devkit(root, [0, 1])


def broken_devkit(root):
    flat_tar(root / TAR)
    (root / DEVKIT).write_bytes(b"no archive")


def broken_meta(root):
    flat_tar(root / TAR)
    folder = root / DEVKIT.removesuffix(".tar.gz") / "data"
    folder.mkdir(parents=True)
    (folder / TRUTH).write_text("1\n" * 6)
    (folder / "meta.mat").write_bytes(b"no matrix")


def truncated_tar(root):
    tar_of_folders(root / TAR)
    (root / TAR).write_bytes((root / TAR).read_bytes()[:700])


def broken_pictures(root):
    with tarfile.open(root / TAR, "w") as tar:
        for name in CLASSES:
            add(tar, f"{name}/0.JPEG", jpeg(2)[:200])


def compressed_tar(root):
    with tarfile.open(root / TAR, "w:gz") as tar:
        add(tar, "a/b.JPEG", jpeg(0))


def two_classes(root):
    class_folders(root)
    for path in (root / CLASSES[1]).iterdir():
        path.unlink()


def train_and_test(root):
    class_folders(root / "train")
    class_folders(root / "test")


def one_class(root):
    class_folders(root)
    for name in CLASSES[1:]:
        (root / name).rename(root.parent / name)


def empty_picture(root):
    class_folders(root)
    (root / CLASSES[1] / "1.JPEG").write_bytes(b"")


def broken_link(root):
    class_folders(root)
    (root / CLASSES[1] / "2.JPEG").symlink_to(root / "nowhere")


def flat_folder(root):
    class_folders(root)
    for name in CLASSES:
        (root / name / "0.JPEG").rename(root / f"{name}.JPEG")
        (root / name / "1.JPEG").unlink()


def other_numbers(root):
    flat_tar(root / TAR)
    devkit(root, [0, 0, 1, 1, 2, 2], packed=False)
    (root / DEVKIT.removesuffix(".tar.gz") / "data" / TRUTH).write_text("1\n2\n3\n17\n1\n1\n")


def other_endings(root):
    class_folders(root)
    for path in root.glob("*/*"):
        path.rename(path.with_suffix(".avif"))


IMAGENET_BAD = {
    "train and test": (train_and_test, "has test and train; give the one to measure on"),
    "one class": (one_class, "has 1 classes, the network 3"),
    "empty picture": (empty_picture, "1 of 6 pictures are empty files, .*n01443537/1.JPEG is the"),
    "broken link": (broken_link, "cannot read .*n01443537/2.JPEG: No such file"),
    "flat folder": (flat_folder, "no labels: ILS.* is not beside them, and there are no class f"),
    "other numbers": (other_numbers, "ground_truth.txt has class 17, and meta.mat does not"),
    "empty class": (two_classes, r"\(folders without a picture are skipped: n01443537\)"),
    "nothing": (lambda root: None, "has neither class folders with pictures nor ILSVRC2012_img"),
    "endings": (other_endings, r"nor ILSVRC2012_img_val.tar; pictures end in \.jpeg, \.jpg, "),
    "no devkit": (flat_without_devkit, f"have no labels: {DEVKIT} is not beside them"),
    "few labels": (too_few_labels, "has 6 pictures, the devkit's ground truth 2"),
    "broken devkit": (broken_devkit, f"cannot read .*{DEVKIT}"),
    "broken meta": (broken_meta, "cannot read ImageNet's devkit in"),
    "compressed": (compressed_tar, "it must be whole, and not compressed"),
    "truncated": (truncated_tar, "it must be whole, and not compressed"),
    "two classes": (two_classes, "has 2 classes, the network 3"),
}


@pytest.mark.parametrize("case", IMAGENET_BAD)
def test_imagenets_that_are_none(tmp_path, case):
    make, message = IMAGENET_BAD[case]
    make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_test_set("imagenet", str(tmp_path), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_picture_that_cannot_be_decoded(tmp_path, workers, kind):
    if kind == "folder":
        class_folders(tmp_path)
        (tmp_path / CLASSES[1] / "0.JPEG").write_bytes(jpeg(2)[:200])
    else:
        broken_pictures(tmp_path)
    found = open_test_set("imagenet", str(tmp_path), 3)
    with pytest.raises(InputError, match=r"^data: cannot decode .*\.JPEG: ") as caught:
        list(Batches(found, LARGE, workers=workers))
    assert "\n" not in str(caught.value)


# ---- the order of classes, and kinds of pictures ----

TWELVE = range(12)
BY_NUMBER = "in the order of their numbers, {} before {}, where torchvision's ImageFolder takes "
ORDERS = {
    "numbers": (list(map(str, TWELVE)), BY_NUMBER.format(2, 10) + "10 first"),
    "from 1": ([str(i + 1) for i in TWELVE], BY_NUMBER.format(2, 10) + "10 first"),
    "padded": ([f"{i:02}" for i in TWELVE], "$"),
    "numbered": ([f"class{i}" for i in TWELVE], BY_NUMBER.format("class2", "class10")),
    "numbers first": ([f"{i}_x{-i}" for i in TWELVE], BY_NUMBER.format("1_x-1", "10_x-10")),
    "one missing": (["0", "1", "3"], "none has the number 2, those after it move up$"),
    "WordNet": (["n01440764", "n01443537", "n02102040"], "$"),
    "a number before": (
        [f"v2_class{i}" for i in TWELVE],
        BY_NUMBER.format("v2_class2", "v2_class10"),
    ),
    "a number in all": (["20_2", "20_10"], BY_NUMBER.format("20_2", "20_10")),
    "before letters": ([f"{i}cat" for i in TWELVE], BY_NUMBER.format("1cat", "10cat")),
    "before letters, some": (["10x", "2x"], "of their names as text, 10x before 2x$"),
    "either case": (["class0", "Class1"], BY_NUMBER.format("class0", "Class1")),
    "full width": (["\uff12", "\uff11\uff10"], BY_NUMBER.format("\uff12", "\uff11\uff10")),
    "fractions": (["0.25", "0.5"], "of their names as text, 0.25 before 0.5$"),
    "words": (["cat", "dog", "ibis"], "$"),
    "numbers and a word": (
        [*map(str, TWELVE), "other"],
        "named by a number have that class, the others fill the gaps: other = 12$",
    ),
    "a word and numbers": (["other", "1", "2"], "the others fill the gaps: other = 0$"),
    "words with numbers": (["DC-10", "DC-3", "F-16"], "of their names as text, DC-10 before DC-3$"),
    "cases": (["Zebra", "ape"], "in the order of their names as text, Zebra before ape$"),
}


class Constant(torch.nn.Module):
    """Answers with the first class."""

    def __init__(self, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        return self.weight.expand(len(x), -1)


@pytest.mark.parametrize("case", ORDERS)
@pytest.mark.parametrize("kind", ["folders", "tar"])
def test_the_order_of_classes(tmp_path, case, kind):
    names, note = ORDERS[case]
    path = tmp_path
    if kind == "tar":
        path = tmp_path / "set.tar"
        with tarfile.open(path, "w") as tar:
            for name in names:
                add(tar, f"{name}/0.jpg", jpeg(0))
    else:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "0.jpg").write_bytes(jpeg(0))
    found = open_test_set("imagenet", str(path), len(names))
    assert [where.name.split("/")[-2].split(":")[-1] for where in found.places] == names
    assert found.labels == list(range(len(names)))
    assert re.search(note, found.note), found.note
    if note != "$":
        measured = Result("", 4, 4)
        recipe = load_recipe("imagenet-resnet18").with_options({"data_path": str(path)})
        how = replace(LARGE, num_classes=len(names))
        measure = MeasureOnData(recipe, how, 0, measured, World())
        assert measure.open() == found.note
        measure(Constant(len(names)))
        assert measured.evaluation == f"{len(names)} test images of imagenet, {found.note}"


def ramp():
    return np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16  # 0 to 65520


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def gray16(kind, **options):
    return saved(Image.fromarray(ramp().astype(np.uint16)), kind, **options)


def gray8(kind="PNG", mode="L", **options):
    return saved(Image.fromarray((ramp() >> 8).astype(np.uint8)).convert(mode), kind, **options)


# Each shows the same gray ramp.
RAMPS = {
    "8.png": lambda: gray8(),
    "16.png": lambda: gray16("PNG"),
    "16.tif": lambda: gray16("TIFF"),
    "16, 0 is white.tif": lambda: saved(
        Image.fromarray((65535 - ramp()).astype(np.uint16)), "TIFF", tiffinfo={262: 0}
    ),
    "16.pgm": lambda: gray16("PPM"),
    "upper case.PNG": lambda: gray8(),
    "alpha.png": lambda: gray8(mode="LA"),
    "RGBA.png": lambda: gray8(mode="RGBA"),
    "palette.gif": lambda: gray8("GIF"),
    "CMYK.tif": lambda: gray8("TIFF", mode="CMYK"),
    "animated.gif": lambda: gray8(
        "GIF", save_all=True, append_images=[Image.new("L", (64, 64), 255)]
    ),
}


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_pictures(tmp_path, name, channels):
    for label in "01":
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes(RAMPS[name]())
    found = open_test_set("imagenet", str(tmp_path), 2)
    how = Preprocessing(2, 64, channels, [0.0] * channels, [1.0] * channels, 64)
    [(images, labels)] = Batches(found, how, workers=0)
    assert labels.tolist() == [0, 1]
    expected = torch.from_numpy((ramp() >> 8).astype(np.int64)).expand(2, channels, 64, 64)
    assert torch.equal((images * 255).round().long(), expected)


@pytest.mark.parametrize(
    ("name", "picture", "reason"),
    [
        ("float.tif", Image.new("F", (8, 8), 0.5), "its pixels are floats, and nothing says which"),
        ("32.tif", Image.new("I", (8, 8), 5), "its pixels are 32-bit integers, and nothing says"),
        ("lab.tif", Image.new("LAB", (8, 8)), "its colors are LAB; save it as gray or RGB"),
    ],
)
def test_pictures_whose_white_nobody_knows(tmp_path, name, picture, reason):
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / name)
    found = open_test_set("imagenet", str(tmp_path), 1)
    with pytest.raises(InputError, match=f"^data: cannot decode .*{name}: {reason}"):
        Batches(found, LARGE, workers=0)  # before anything is measured


def test_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.delenv("GDFQ_DATA", raising=False)
    with pytest.raises(InputError, match="no place to look for cifar10; set data_path or GDFQ"):
        open_test_set("cifar10", None, 10)
    monkeypatch.setenv("GDFQ_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"there is no cifar-100-python/test in {tmp_path}"):
        open_test_set("cifar100", None, 100)
    with pytest.raises(InputError, match=f"there is no {tmp_path}/imagenet; set data_path"):
        open_test_set("imagenet", None, 1000)
    with pytest.raises(InputError, match=r"data: must be fashion-mnist, .* got 'mnist'"):
        open_test_set("mnist", str(tmp_path), 10)


# ---- what is measured ----


def test_fashion_mnist_fits_other_networks():
    found = open_test_set("fashion-mnist", None, 10)
    assert len(found) == 10_000
    few = ArraySet("few", found.images[:3], found.labels[:3])
    (images, labels), *rest = Batches(few, SMALL)
    assert not rest
    assert images.shape == (3, 3, 32, 32)
    assert labels.tolist() == found.labels[:3].tolist()
    odd = Preprocessing(10, 28, 2, [0.0] * 2, [1.0] * 2, 28)
    with pytest.raises(InputError, match="can be gray or RGB, the network takes 2 channels"):
        Batches(few, odd)


def test_top1_counts():
    class Parity(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return torch.stack((1 - x[:, 0], x[:, 0]), 1)

    batches = [(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 0]))]
    batches.append((torch.tensor([[0.0]]), torch.tensor([1])))
    assert top1(Parity(), batches) == 50.0
