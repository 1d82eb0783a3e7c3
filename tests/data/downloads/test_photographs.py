"""Photographs from packages: checked, laid out by class, and read as a test set."""

import csv
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from gdfq.cli import main
from gdfq.data import open_test_set
from gdfq.data.downloads import download_photographs, photographs
from gdfq.data.photographs import Photograph, list_photographs, parse_classes
from gdfq.data.photographs import photographs as table
from gdfq.errors import InputError
from tests.helpers.packages import deb, rcc, wheel


def encoded(mode, pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(buffer, kind, **options)
    return buffer.getvalue()


RED = [255, 0, 0]
PICTURES = {
    # Opaque, half transparent and transparent.
    "animals/red.png": encoded("RGBA", [[[*RED, 255], [*RED, 51], [*RED, 0]]] * 2, "PNG"),
    "animals/pen.png": encoded("LA", [[[9, 255]] * 5] * 2, "PNG"),
    "erase.rcc/g/src/erase/gorilla.webp": encoded("RGB", [[RED] * 9] * 9, "WEBP"),
    "erase.rcc/g/src/erase/sea.webp": encoded("RGBA", [[[*RED, 0]]], "WEBP", lossless=True),
    "imagenet_00_243.jpg": encoded("RGB", [[RED] * 9] * 2, "JPEG"),
}
LABELS = {
    "animals/red.png": ("345", "ox"),
    "animals/pen.png": ("", ""),
    "erase.rcc/g/src/erase/gorilla.webp": ("151-153 366", "drake (male)"),
    "erase.rcc/g/src/erase/sea.webp": ("", ""),
    "imagenet_00_243.jpg": ("243", "bull mastiff"),
}


def rows(pictures):
    for (name, content), source in zip(pictures.items(), [0, 0, 1, 1, 2], strict=True):
        package = photographs.SOURCES[source].package.name
        yield Photograph(package, name, hashlib.sha256(content).hexdigest()[:16], *LABELS[name])


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Small packages of the real ones' form, and their table in place of the real one."""
    monkeypatch.setattr(photographs, "photographs", lambda: tuple(rows(PICTURES)))
    return write(tmp_path, PICTURES)


def write(folder, pictures):
    tuxpaint, gcompris, foolbox = photographs.SOURCES
    resource = {name.split("/", 1)[1]: x for name, x in pictures.items() if ".rcc" in name}
    resource |= {"g/src/erase/README": b"Copyright: somebody", "g/src/other/README": b"other"}
    return [
        deb(
            folder / "tuxpaint-stamps-default_1_all.deb",
            {tuxpaint.licence: b"GPL"}
            | {tuxpaint.root + k: x for k, x in pictures.items() if k.startswith("animals")},
        ),
        deb(
            folder / "gcompris-qt-data_1_all.deb",
            {gcompris.licence: b"many", gcompris.root + "erase.rcc": rcc(resource, 3)},
        ),
        wheel(
            folder / "foolbox-1-any.whl",
            {foolbox.licence: b"MIT"}
            | {foolbox.root + k: x for k, x in pictures.items() if k.startswith("imagenet")},
        ),
    ]


def test_every_picture_is_in_the_folder_of_its_first_class(packages, tmp_path):
    folder = download_photographs(tmp_path / "data", packages)
    found = {str(p.relative_to(folder)): p for p in folder.glob("*/*")}
    assert sorted(found) == [
        "0151-drake-male/erase-gorilla.webp",
        "0243-bull-mastiff/imagenet_00_243.jpg",
        "0345-ox/animals-red.png",
        "unlabelled/animals-pen.png",
        "unlabelled/erase-sea.png",
    ]
    same = {"0151-drake-male/erase-gorilla.webp": "erase.rcc/g/src/erase/gorilla.webp",
            "0243-bull-mastiff/imagenet_00_243.jpg": "imagenet_00_243.jpg"}  # fmt: skip
    for place, name in same.items():
        assert found[place].read_bytes() == PICTURES[name]
    red = Image.open(found["0345-ox/animals-red.png"])
    assert red.mode == "RGB"
    assert np.asarray(red).tolist() == [[[255, 0, 0], [255, 204, 204], [255] * 3]] * 2
    pen = np.asarray(Image.open(found["unlabelled/animals-pen.png"]))
    assert pen[..., 0].tolist() == [[255] * 5, [9] * 5, [9] * 5, [255] * 5, [255] * 5]
    with (folder / "labels.tsv").open(newline="") as file:
        listed = {row["picture"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert set(listed) == set(found)
    assert listed["0151-drake-male/erase-gorilla.webp"] == {
        "picture": "0151-drake-male/erase-gorilla.webp", "classes": "151-153 366",
        "name": "drake (male)", "package": "gcompris-qt-data",
        "file": "erase.rcc/g/src/erase/gorilla.webp",
    }  # fmt: skip
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert "Copyright: somebody" in attribution
    assert "other" not in attribution.split("## gcompris")[1].split("## foolbox")[0].split("###")[1]
    assert (folder / "gcompris-qt-data-copyright.txt").read_bytes() == b"many"


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_become_white_in_every_mode(mode):
    picture = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]] * 2, np.uint8))
    buffer = io.BytesIO()
    if mode == "P":
        Image.fromarray(np.array([[0, 1]] * 2, np.uint8)).convert("P").save(
            buffer, "PNG", transparency=0
        )
    else:
        picture.convert(mode).save(buffer, "PNG")
    content, ending = photographs.prepare(buffer.getvalue())
    found = np.asarray(Image.open(io.BytesIO(content)))
    dark = 1 if mode == "P" else 9
    assert ending == ".png"
    assert found.tolist() == [[[255] * 3, [dark] * 3]] * 2


def test_it_is_a_test_set_with_several_right_classes(packages, tmp_path, monkeypatch):
    folder = download_photographs(tmp_path / "data", packages)
    monkeypatch.setenv("GDFQ_DATA", str(tmp_path / "data"))
    for path in (str(folder), str(tmp_path / "data"), None):
        found = open_test_set("photographs", path, 1000)
        labels = [np.flatnonzero(found[index][1]).tolist() for index in range(len(found))]
        assert labels == [[345], [151, 152, 153, 366], [243]]
        assert found[1][1].shape == (1000,)
        assert found[1][1].dtype == bool
        assert found[2][0].size == (9, 2)
    assert len(list_photographs(folder)) == 5
    with pytest.raises(InputError, match=r"^data: photographs have ImageNet's 1000 classes, the"):
        open_test_set("photographs", str(folder), 10)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, r"there is no labels\.tsv in .*data or its folder photographs; `gdfq data photo"),
        ("picture\tclasses\n", "has no picture with a class"),
        ("picture\tclasses\na.png\t1000\n", "classes must be 0 to 999, got '1000'"),
        ("picture\tclasses\na.png\tcat\n", "cannot read .*labels.tsv: .*'cat'"),
        ("picture\nx\n", "cannot read .*labels.tsv: 'classes'"),
        ("picture\tclasses\nx\n", "cannot read .*labels.tsv"),
        ("picture\tclasses\na.png\t3\n", "cannot read .*a.png: No such file"),
    ],
)
def test_labels_that_are_none_are_one_line(tmp_path, text, error):
    (tmp_path / "data").mkdir()
    if text is not None:
        (tmp_path / "data" / "labels.tsv").write_text(text)
    with pytest.raises(InputError, match=f"^data: .*{error}"):
        open_test_set("photographs", str(tmp_path / "data"), 1000)


@pytest.mark.parametrize("name", sorted(PICTURES))
@pytest.mark.parametrize("lacks", [True, False])
def test_another_version_of_a_package_is_noticed(packages, tmp_path, name, lacks):
    pictures = {k: x for k, x in PICTURES.items() if k != name or not lacks}
    if not lacks:
        pictures[name] += b"\0"
    (tmp_path / "other").mkdir()
    problem = "has no" if lacks else "has another"
    with pytest.raises(InputError, match=f"^package: .* {problem} {name}; the labels are for"):
        download_photographs(tmp_path / "data", write(tmp_path / "other", pictures))
    assert list((tmp_path / "data").iterdir()) == []


def test_of_many_pictures_that_differ_the_first_are_named(packages, tmp_path, monkeypatch):
    many = tuple(Photograph("foolbox", f"{n}.jpg", "0", "1", "goldfish") for n in range(5))
    monkeypatch.setattr(photographs, "photographs", lambda: many)
    monkeypatch.setattr(photographs, "SOURCES", photographs.SOURCES[2:])
    with pytest.raises(InputError, match=r"has no 0\.jpg, 1\.jpg, 2\.jpg and 2 more; .* foolbox 3"):
        download_photographs(tmp_path / "data", packages[2:])


def test_a_damaged_resource_file_is_named(packages, tmp_path):
    gcompris = photographs.SOURCES[1]
    deb(packages[1], {gcompris.licence: b"", gcompris.root + "erase.rcc": b"qres"})
    with pytest.raises(InputError, match=r"^package: cannot read erase\.rcc in .*: it is damaged"):
        download_photographs(tmp_path / "data", packages)


def test_what_is_missing_shows_before_much_is_fetched(packages, tmp_path, monkeypatch):
    fetched = []

    def fetch(package, folder, on_status):
        fetched.append(package.name)
        if package.name == "gcompris-qt-data":
            raise InputError("package: no network")
        return next(path for path in packages if path.match(package.file))

    monkeypatch.setattr(photographs.Package, "fetch", fetch)
    with pytest.raises(InputError, match="no network"):
        download_photographs(tmp_path / "data")
    assert fetched == ["foolbox", "gcompris-qt-data"]
    assert list((tmp_path / "data").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(packages, tmp_path, monkeypatch):
    def interrupted(content):
        raise KeyboardInterrupt

    monkeypatch.setattr(photographs, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_photographs(tmp_path / "data", packages)
    assert list((tmp_path / "data").iterdir()) == []


def test_the_command_says_how_to_measure(packages, tmp_path, monkeypatch, capsys):
    given = [word for path in packages for word in ("--package", str(path))]
    command = ["gdfq", "data", "photographs", "--out", str(tmp_path / "data"), *given]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert f"--data photographs --data-path {tmp_path / 'data'}" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "photographs exists already" in capsys.readouterr().err


def test_the_table_is_complete():
    labelled = [row for row in table() if row.classes]
    assert (len(labelled), len(table())) == (231, 590)
    assert {row.package for row in table()} == {s.package.name for s in photographs.SOURCES}
    assert all(row.name and parse_classes(row.classes) for row in labelled)
    assert len({photographs._place(row).with_suffix("") for row in table()}) == len(table())
    several = [row for row in labelled if len(parse_classes(row.classes)) > 1]
    assert parse_classes("151-268") == list(range(151, 269))
    assert len(several) == 34
