"""A reader of `.ppz` files that knows docs/ppz-format.md and nothing of the project."""

from __future__ import annotations

import bisect
import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import zstandard


class Reader:
    """A decoder written from docs/ppz-format.md alone, in plain Python."""

    def __init__(self, file: bytes) -> None:
        assert file[:8] == bytes.fromhex("8950505A0D0A1A0A")
        version, crc, self.size = struct.unpack_from("<IIQ", file, 8)
        assert version == 2
        assert zlib.crc32(file[16:]) == crc
        self.digest = file[24:56]
        self.codecs: list[int] = []
        self.data, self.at = file, 56
        sizes = [(self.integer(), self.integer()) for _ in range(11)]
        sections = []
        for size, stored in sizes:
            part = file[self.at : self.at + stored]
            self.at += stored
            if stored != size:
                part = zstandard.ZstdDecompressor().decompress(part)
            assert len(part) == size
            sections.append(part)
        assert self.at == len(file)
        self.data, self.at = sections[0], 0
        self.steps, self.graph, self.bulk = list(sections[1]), sections[2], sections[10]
        self.words = [bytes(number) for number in zip(*sections[3:7], strict=True)]
        self.halves = [bytes(number) for number in zip(*sections[7:9], strict=True)]
        self.stack: list[int] = list(struct.unpack(f"<{len(sections[9]) // 4}I", sections[9]))
        self.state: int = self.stack.pop() if self.stack else 0
        if self.stack:
            self.state = self.state << 32 | self.stack.pop()

    def integer(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def take(self, section: str, count: int) -> Any:
        part = getattr(self, section)
        setattr(self, section, part[count:])
        assert len(part) >= count
        return part[:count]

    def content(self) -> bytes:
        out = b""
        for _ in range(self.integer()):
            gap, size, codec = self.integer(), self.integer(), self.integer()
            self.codecs.append(codec)
            out += self.take("graph", gap)
            tensor = self.tensor(codec, size)
            assert len(tensor) == size
            out += tensor
        out += self.graph
        left: list[Any] = [self.words, self.halves, self.steps, self.bulk, self.stack]
        assert [len(part) for part in left] == [0] * 5
        assert self.state == 0
        assert self.at == len(self.data)
        assert len(out) == self.size
        assert hashlib.sha256(out).digest() == self.digest
        return out

    def tensor(self, codec: int, size: int) -> bytes:
        if codec == 0:
            return bytes(self.take("bulk", size))
        if codec == 1:
            return zstandard.ZstdDecompressor().decompress(self.take("bulk", self.integer()))
        if codec == 3:
            low, alphabet = self.integer() - 128, self.integer()
            return struct.pack(f"{size}b", *(low + s for s in self.symbols(alphabet, size)))
        if codec == 4:
            return b"".join(self.take("words", size // 4))
        flags = self.integer()
        if codec == 5:
            block, entries = self.integer(), self.integer()
            numbers = self.numbers(entries * block, flags & 1)
            table = [b"".join(numbers[i * block :][:block]) for i in range(entries)]
            symbols = self.symbols(entries + (flags & 4) // 4, size // 4 // block)
            return b"".join(
                table[s] if s < entries else b"".join(self.numbers(block, flags & 2))
                for s in symbols
            )
        assert codec == 6
        rows, zero, steps = self.integer(), self.integer(), self.integer()
        scales = np.frombuffer(b"".join(self.take("words", rows)), "<f4")
        out = b""
        symbols = self.symbols(steps + (flags & 4) // 4, size // 4)
        for index, s in enumerate(symbols):
            scale = scales[index // (size // 4 // rows)]
            value = (np.float32(s - zero) * scale).tobytes()
            out += value if s < steps else self.numbers(1, flags & 2)[0]
        return out

    def numbers(self, count: int, narrow: int) -> list[bytes]:
        if not narrow:
            return list(self.take("words", count))
        return [np.frombuffer(h, "<f2").astype("<f4").tobytes() for h in self.take("halves", count)]

    def symbols(self, alphabet: int, count: int) -> list[int]:
        if alphabet == 1:
            return [0] * count
        axes = [(self.integer(), self.integer()) for _ in range(self.integer())]
        form = self.integer()
        bins = [(inner, n, self.take("steps", n)) for inner, n in axes]
        classes = [sum(b[i // inner % n] for inner, n, b in bins) for i in range(count)]
        centre = self.integer() if form == 5 else 0
        models = {}
        for c in sorted(set(classes)):
            models[c] = self.starts(self.weights(form, alphabet, centre))
        out = [0] * count
        for run in range(0, count, 2**18):
            for i in sorted(range(run, min(run + 2**18, count)), key=lambda i: classes[i]):
                out[i] = self.pop(models[classes[i]])
        return out

    def weights(self, form: int, alphabet: int, centre: int) -> list[int]:
        eighths = (65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194)

        def power(e: int) -> int:
            return eighths[e % 8] << e // 8

        if form == 0:
            return [self.integer() for _ in range(alphabet)]
        if form < 5:
            r = (1, 2, 4, 8)[form - 1]
            levels = self.take("steps", alphabet)
            return [power((level - 1) * 8 // r) if level else 0 for level in levels]
        a, b, floor = self.take("steps", 3)
        a, b = ((4 + i % 4) * 2 ** (i // 4) if i else 0 for i in (a, b))
        distances = [abs(s - centre) for s in range(alphabet)]
        return [power(240 - min(8 * floor, (a * k + b * k * k) // 2**16)) for k in distances]

    @staticmethod
    def starts(weights: list[int]) -> list[int]:
        shares = [weight / sum(weights) for weight in weights]
        total = 0.0
        for share in shares:
            total += share
        scale = (2**24 - len(shares)) / total
        starts, below = [], 0.0
        for index, share in enumerate(shares):
            starts.append(int(below * scale) + index)
            below += share
        return [*starts, 2**24]

    def pop(self, starts: list[int]) -> int:
        quantile = self.state % 2**24
        symbol = bisect.bisect_right(starts, quantile) - 1
        width = starts[symbol + 1] - starts[symbol]
        self.state = width * (self.state >> 24) + quantile - starts[symbol]
        if self.state < 2**32 and self.stack:
            self.state = self.state << 32 | self.stack.pop()
        return symbol
