"""What a cubin says of its own kernels, read without NVIDIA's tools.

A cubin is an ELF file. Each kernel has a section ``.text.<entry>`` with its code and another,
``.nv.info.<entry>``, with attributes, of which one holds the bound of its launches; registers are
listed for all kernels in ``.nv.info``. The numbers of attributes are those that nvdisasm prints
beside their names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_THREADS, _REGISTERS = 0x05, 0x2F
_WITH_SIZE = 0x04  # other formats keep their value in the two bytes of the size


@dataclass(frozen=True)
class Kernel:
    """One entry of a cubin."""

    registers: int
    block_threads: int


def kernels(cubin: Path) -> dict[str, Kernel]:
    """Every entry of a cubin by name.

    Raises:
        ValueError: It is no 64-bit ELF file, or a kernel has no bound of its launches.
    """
    sections = _sections(cubin.read_bytes(), cubin.name)
    symbols = _symbols(sections[".symtab"], sections[".strtab"])
    registers = {
        symbols[index]: count
        for index, count in _attributes(sections[".nv.info"], _REGISTERS, "<II")
    }
    found = {}
    for name in sorted(each.removeprefix(".text.") for each in sections if each[:6] == ".text."):
        bounds = list(_attributes(sections[f".nv.info.{name}"], _MAX_THREADS, "<III"))
        if len(bounds) != 1:
            raise ValueError(f"{cubin.name}: {name} has {len(bounds)} launch bounds, expected 1")
        x, y, z = bounds[0]
        found[name] = Kernel(registers[name], x * y * z)
    return found


def _sections(data: bytes, name: str) -> dict[str, bytes]:
    if data[:5] != b"\x7fELF\x02" or len(data) < 64:
        raise ValueError(f"{name}: is no 64-bit ELF file, which a cubin is")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    return {
        _text(data, names + name_at): data[at : at + length]
        for name_at, _, _, _, at, length in headers
    }


def _symbols(table: bytes, names: bytes) -> list[str]:
    return [_text(names, at) for (at, _, _, _, _, _) in struct.iter_unpack("<IBBHQQ", table)]


def _attributes(data: bytes, wanted: int, layout: str) -> Iterator[tuple[int, ...]]:
    """Values of the attributes of one number: format, number, size in bytes, then the value."""
    at = 0
    while at < len(data):
        form, number, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form != _WITH_SIZE:
            continue
        if number == wanted:
            yield struct.unpack_from(layout, data, at)
        at += size


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
