"""TensorBoard's event files, which TensorBoard draws; writing them needs neither it nor TensorFlow.

A file is a row of records, each the protocol buffer ``Event`` with its length and checksums (tensorflow/core/util/
event.proto and lib/io/record_writer.h, of which this writes scalars and PNG images). Knows nothing of training.
"""

import os
import socket
import struct
import time
from io import BytesIO
from pathlib import Path

import numpy as np


class EventFile:
    """An event file in ``folder``, begun with its first record; every record is on the disk when the call returns."""

    def __init__(self, folder: str | os.PathLike):
        self.folder, self._path = Path(folder), None

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve ``tag``; beyond float32's range it is infinite."""
        with np.errstate(over="ignore"):
            self._value(tag, step, b"\x15" + np.array(value, "<f4").tobytes())

    def image(self, tag: str, picture, step: int) -> None:
        """Add a PIL image, RGB, to the row of images ``tag``."""
        png = BytesIO()
        picture.convert("RGB").save(png, "png")
        sizes = _whole(1, picture.height) + _whole(2, picture.width) + _whole(3, 3)
        self._value(tag, step, _bytes(4, sizes + _bytes(4, png.getvalue())))

    def _value(self, tag, step, value):
        if self._path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{id(self)}"
            self._path = self.folder / name
            self._write(_bytes(3, b"brain.Event:2"))
        summary = _bytes(1, _bytes(1, tag.encode()) + value)
        self._write(_whole(2, step) + _bytes(5, summary))

    def _write(self, event):
        event = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        with self._path.open("ab") as file:
            file.write(length + _masked_checksum(length) + event + _masked_checksum(event))


def _varint(number):
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _whole(field, number):
    return _varint(field << 3) + _varint(number)


def _bytes(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _table():
    """CRC-32C of each byte: Castagnoli's polynomial, the lowest bit first."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


def _masked_checksum(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
