"""NumPy archives: arrays `x`, and optionally `y`, `split` and `names`; no pickles inside."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from compression.errors import DataRefused
from workers.datasets.rows import (
    Layout,
    Rows,
    check_size,
    infer_layout,
    to_declared,
    to_images,
    to_labels,
)

KNOWN = ("x", "y", "split", "names")


def read_npz(
    stream: BinaryIO, *, layout: Layout | None = None, num_classes: int | None = None
) -> Rows:
    """Read and check a whole archive.

    Args:
        stream: The file.
        layout: Order of the axes of `x`; None takes what its shape says.
        num_classes: If given, every label must be below it.

    Raises:
        DataRefused: The file is no archive of these arrays, is damaged, or holds wrong values.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = dict(_headers(archive))
            _check_names(members)
            arrays = {name: _array(archive, name) for name in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataRefused(
            f"The file is no .npz archive, or is truncated or damaged: {error}"
        ) from error
    x = arrays["x"]
    y, split, names = arrays.get("y"), arrays.get("split"), arrays.get("names")
    known = layout or infer_layout(x.shape)
    images = to_images(x, known or "NCHW")
    return Rows(
        images=images,
        labels=None if y is None else to_labels(y, len(x), num_classes),
        declared=None if split is None else to_declared(split, len(x)),
        names=() if names is None else _to_names(names),
        ambiguous=known is None and x.ndim == 4,
    )


def _headers(archive: zipfile.ZipFile) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each array's name and shape after checking its header; no data is read yet."""
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        with archive.open(entry) as member:
            try:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(member)
            except (ValueError, SyntaxError, TypeError) as error:
                raise DataRefused(
                    f"Entry {entry.filename!r} of the archive is not a NumPy array: {error}"
                ) from error
        if dtype.hasobject:
            raise DataRefused(
                f"Array {name!r} holds Python objects (type {dtype}); store plain numbers"
            )
        check_size(1, shape, dtype.itemsize, what=f"Array {name!r}")
        yield name, shape


def _check_names(members: dict[str, tuple[int, ...]]) -> None:
    unknown = [name for name in members if name not in KNOWN]
    if "x" not in members or unknown:
        found = ", ".join(sorted(members)) or "none"
        raise DataRefused(
            f"The archive has the arrays {found}; required is 'x' (images), "
            "optional are 'y' (labels), 'split' and 'names'"
        )
    counts = {name: (shape[0] if shape else 0) for name, shape in members.items()}
    for name in ("y", "split"):
        if name in counts and counts[name] != counts["x"]:
            raise DataRefused(f"Array 'x' has {counts['x']} rows but {name!r} has {counts[name]}")


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    # Either spelling is found by numpy.load as well.
    known = archive.namelist()
    with archive.open(name if name in known else f"{name}.npy") as member:
        try:
            array: NDArray[np.generic] = npy.read_array(member, allow_pickle=False)
        except ValueError as error:
            raise DataRefused(f"Array {name!r} is truncated or damaged: {error}") from error
    return array


def _to_names(names: NDArray[np.generic]) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataRefused(
            f"Array 'names' has type {names.dtype} and shape {list(names.shape)}; "
            "a list of text is expected"
        )
    return tuple(str(name) for name in names.astype(np.str_).tolist())
