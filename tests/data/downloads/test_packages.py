"""Packages of registries: fetched, told apart and read, and one line where that fails."""

import io
import sys
import tarfile

import pytest

from gdfq.data.downloads import packages
from gdfq.data.downloads.packages import Package, match_files, new_folder, read_package
from gdfq.errors import InputError
from tests.helpers.packages import deb, wheel

ONE = Package("apt-get download", "one", "1.2-3", "one_*.deb", 7)
TWO = Package("pip download", "two", "4.5", "two-*.whl", 8, pinned="==")
FILES = {"usr/a": b"first", "usr/b": bytes(3), "usr/c": b"unread"}
WANTED = {"usr/a", "usr/b", "usr/none"}


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", ""])
def test_a_debian_package_is_read(tmp_path, compression):
    path = deb(tmp_path / "one_1.deb", FILES, compression)
    assert read_package(path, WANTED) == {"usr/a": b"first", "usr/b": bytes(3)}


def test_a_wheel_is_read(tmp_path):
    path = wheel(tmp_path / "two.whl", FILES)
    assert read_package(path, WANTED) == {"usr/a": b"first", "usr/b": bytes(3)}


@pytest.mark.parametrize("kind", [deb, wheel])
def test_a_package_that_is_cut_off_is_one_line(tmp_path, kind):
    whole = kind(tmp_path / "whole", {"usr/a": bytes(range(256)) * 50}).read_bytes()
    for length in range(0, len(whole), 50):
        path = tmp_path / "part"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"^package: cannot read"):
            read_package(path, WANTED)


def test_a_folder_and_an_archive_without_data_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_package(tmp_path, WANTED)
    path = tmp_path / "one.deb"
    path.write_bytes(b"!<arch>\n")
    with pytest.raises(InputError, match=r"cannot read .*: it has no data\.tar"):
        read_package(path, WANTED)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="reads zstd")
def test_zstd_is_named(tmp_path):
    path = deb(tmp_path / "one.deb", FILES)
    path.write_bytes(path.read_bytes().replace(b"data.tar.xz ", b"data.tar.zst"))
    with pytest.raises(InputError, match="compressed by zstd; give Debian's own file"):
        read_package(path, WANTED)


def test_a_link_out_of_a_package_is_not_followed(tmp_path):
    path = tmp_path / "p.tgz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("usr/a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        member = tarfile.TarInfo("usr/b")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"b"))
    assert read_package(path, WANTED) == {"usr/b": b"b"}


def test_given_files_are_known_by_name(tmp_path):
    deb_file, whl_file = tmp_path / "one_9-9_all.deb", tmp_path / "two-4.5-py3-none-any.whl"
    assert match_files([ONE, TWO], [whl_file, deb_file]) == {ONE: deb_file, TWO: whl_file}
    with pytest.raises(InputError, match=r"package: .*x\.deb is none of one_\*\.deb, two-\*\.whl"):
        match_files([ONE, TWO], [tmp_path / "x.deb"])
    with pytest.raises(InputError, match=r"are both one$"):
        match_files([ONE, TWO], [deb_file, tmp_path / "one_2.deb"])


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_package_is_fetched_into_the_folder(tmp_path, monkeypatch):
    script(tmp_path, "apt-get", 'echo "$@" > one_1.2-3_all.deb')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    folder = tmp_path / "here"
    folder.mkdir()
    lines = []
    found = ONE.fetch(folder, lines.append)
    assert found == folder / "one_1.2-3_all.deb"
    assert found.read_text().split()[-1] == "one"
    assert lines == ["fetching one by apt-get, 7 MB ..."]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'W: slow' >&2; echo 'E: Unable to locate package one' >&2; exit 100",
         "E: Unable to locate package one"),
        ("exit 3", "exit code 3"),
        ("true", "exit code 0"),
    ],
)  # fmt: skip
def test_a_manager_that_fails_is_one_line(tmp_path, monkeypatch, text, reason):
    script(tmp_path, "apt-get", text)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(InputError) as error:
        ONE.fetch(tmp_path, print)
    assert str(error.value) == (
        f"package: `apt-get download one` failed: {reason}; try again, or give the file of one "
        "1.2-3, one_*.deb"
    )


def test_a_missing_manager_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"^package: apt-get is not installed; install it, or give"
    ):
        ONE.fetch(tmp_path, print)


def test_a_python_without_pip_is_one_line(tmp_path, monkeypatch):
    (
        program,
        *_,
    ) = packages.COMMANDS["pip download"]
    monkeypatch.setitem(packages.COMMANDS, "pip download", [program, "-m", "no_pip", "download"])
    with pytest.raises(
        InputError, match=r"`pip download two==4\.5` failed: .*No module named no_pip"
    ):
        TWO.fetch(tmp_path, print)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, InputError("x"), OSError(28, "full")])
def test_after_an_interruption_nothing_is_left(tmp_path, interruption):
    expected = InputError if isinstance(interruption, OSError) else BaseException

    def interrupted():
        with new_folder(tmp_path / "out" / "data") as (folder, temporary):
            (folder / "half").write_text("x")
            (temporary / "package").write_text("x")
            raise interruption

    with pytest.raises(expected):
        interrupted()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    place = new_folder(tmp_path / "file" / "data")
    with pytest.raises(InputError, match=r"^out: cannot write .*file/data: File exists$"):
        place.__enter__()
