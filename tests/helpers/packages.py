"""Small packages in the forms of the registries': Debian's, PyPI's, and Qt's resource files."""

import io
import struct
import tarfile
import zipfile
import zlib


def rcc(files, version, packed=()):
    """A Qt resource file in which ``packed`` are compressed; tree first, data last."""
    tree = {}
    for path, content in files.items():
        *parents, name = path.split("/")
        folder = tree
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = path, content
    nodes, data, names = [("", tree)], b"", b""
    rows = []
    for name, value in nodes:  # grows: children follow their parents, each folder's together
        place = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(value, dict):
            rows.append((place, 2, len(value), len(nodes)))
            nodes += value.items()
        else:
            path, content = value
            if path in packed:
                content = struct.pack(">I", len(content)) + zlib.compress(content)
            rows.append((place, int(path in packed), 0, len(data)))
            data += struct.pack(">I", len(content)) + content
    time = b"" if version == 1 else bytes(8)
    body = b"".join(struct.pack(">IHII", *row) + time for row in rows)
    start = 20
    header = struct.pack(">4s4I", b"qres", version, start, start + len(body) + len(names),
                         start + len(body))  # fmt: skip
    return header + body + names + data


def deb(path, files, compression="xz"):
    """Write a Debian package: ``data.tar`` behind other files in an ar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    ending = f".{compression}" if compression else ""
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar{ending}", buffer.getvalue()),
    ]
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members:
            file.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def wheel(path, files):
    """Write a wheel."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
