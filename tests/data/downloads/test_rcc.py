"""Qt's resource files: every version is read, and a damaged one is noticed."""

import pytest

from gdfq.data.downloads.rcc import read_rcc
from tests.helpers.packages import rcc

FILES = {"a/b/x.webp": b"picture", "a/y": bytes(300), "é": b"", "a/b/z": bytes(range(256))}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("packed", [(), ("a/y", "a/b/z")])
def test_every_file_of_every_version_is_read(version, packed):
    assert read_rcc(rcc(FILES, version, packed)) == FILES


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: b"", "damaged"),
        (lambda content: b"qrex" + content[4:], "not a Qt resource file of version 1 to 3"),
        (lambda content: content[:7] + b"\x04" + content[8:], "not a Qt resource file of version"),
        (lambda content: content[:-1], "cut off"),
        (lambda content: content[:40], "damaged|cut off"),
        # Its root's first child is the root.
        (lambda content: content[:30] + bytes(4) + content[34:], "tree is damaged"),
        (lambda content: content.replace(b"\x78\x9c", b"\x78\x00"), "damaged"),
    ],
)
def test_a_damaged_file_is_noticed(change, error):
    content = rcc({"a": b"x" * 50, "b": b"last"}, 3, ["a"])
    with pytest.raises(ValueError, match=error):
        read_rcc(change(content))


def test_a_file_that_is_packed_by_zstd_is_named():
    content = bytearray(rcc({"a": b"x"}, 3))
    content[20 + 22 + 5] = 4
    with pytest.raises(ValueError, match="a is compressed by zstd"):
        read_rcc(bytes(content))
