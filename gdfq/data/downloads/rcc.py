"""Reader of Qt's compiled resource files (``.rcc``)."""

from __future__ import annotations

import struct
import zlib

FOLDER, ZLIB, ZSTD = 2, 1, 4  # flags of a node


def read_rcc(content: bytes) -> dict[str, bytes]:
    """Return the files of a resource file, by path.

    All numbers are big-endian. ``qres``, then version and the places of tree, data and names (u32).
    A node of the tree has 22 bytes, 14 in version 1: place of its name (u32), flags (u16); of a
    folder then number of children and first child (u32), of a file locale and place of its data
    (u32). Data are a length (u32) and bytes, with flag 1 packed by zlib behind four bytes of
    length; a name is a length (u16), a hash (u32) and UTF-16.

    Raises:
        ValueError: ``content`` is not such a file.
    """
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
        if magic != b"qres" or not 1 <= version <= 3:
            raise ValueError("it is not a Qt resource file of version 1 to 3")
        node_size = 14 if version == 1 else 22

        def node(index: int) -> tuple[str, int, int, int]:
            place, flags, first, second = struct.unpack_from(
                ">IHII", content, tree + index * node_size
            )
            (length,) = struct.unpack_from(">H", content, names + place)
            start = names + place + 6
            name = content[start : start + 2 * length].decode("utf-16-be") if index else ""
            return name, flags, first, second

        files = {}
        seen = {0}
        pending = [(0, "")]
        while pending:
            index, parent = pending.pop()
            name, flags, first, second = node(index)
            path = f"{parent}/{name}" if parent else name
            if flags & FOLDER:
                children = range(second, second + first)
                if len(children) > len(content) or not seen.isdisjoint(children):
                    raise ValueError("its tree is damaged")
                seen.update(children)
                pending += [(child, path) for child in children]
                continue
            if flags & ZSTD:
                raise ValueError(f"{path} is compressed by zstd")
            (length,) = struct.unpack_from(">I", content, data + second)
            start = data + second + 4
            found = content[start : start + length]
            if len(found) != length:
                raise ValueError("it is cut off")
            files[path] = zlib.decompress(found[4:]) if flags & ZLIB else found
        return files
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error
