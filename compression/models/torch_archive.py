"""The zip archives that torch writes, told apart and inspected without unpickling.

`torch.save` writes `<name>/data.pkl` beside `<name>/data/0`, `<name>/data/1`, ...; TorchScript
adds `constants.pkl` and `code/`; `torch.export` writes `archive_format` and `models/`. All are
stored, not deflated.
"""

from __future__ import annotations

import pickletools
import zipfile
from typing import BinaryIO

from compression.errors import ModelRefused

MAX_PICKLE_BYTES = 64 << 20
"""Of `data.pkl`, which describes the tensors and holds none of their data."""

STATE_DICT = "a torch.save archive of tensors"

ALLOWED_ROOTS = ("torch", "collections", "numpy", "_codecs")
"""Where the names in a state dict's pickle come from; torch.load(weights_only=True) then admits
only some of these. A name from elsewhere, or a module class of torch.nn, means that a whole
object was saved."""


def check_torch_archive(stream: BinaryIO) -> str:
    """Require a zip archive that holds a state dict and return its description.

    Raises:
        ModelRefused: It is another kind of archive, is damaged, or pickles more than tensors.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            _refuse_other_kinds({entry.filename for entry in entries})
            pickles = [e for e in entries if e.filename.split("/")[-1] == "data.pkl"]
            _refuse_deflated(entries)
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise ModelRefused(
                    f"The torch archive has {len(pickles)} entries data.pkl (1 is required, "
                    f"of at most {MAX_PICKLE_BYTES} bytes)"
                )
            _refuse_objects(archive.read(pickles[0]))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        if isinstance(error, ModelRefused):
            raise
        raise ModelRefused(f"The archive is truncated or damaged: {error}") from error
    return STATE_DICT


def _refuse_other_kinds(names: set[str]) -> None:
    parts = {part for name in names for part in name.split("/")[:2]}
    tails = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in tails or "code" in parts:
        found = "a TorchScript archive, which carries code"
    elif (
        "archive_format" in tails
        or "models" in parts
        or "serialized_exported_program.json" in tails
    ):
        found = "a torch.export program (.pt2), which can run code when it is loaded"
    elif any(name.endswith(".npy") for name in names):
        found = "a NumPy .npz archive"
    elif "model.weights.h5" in tails:
        found = "a Keras archive"
    elif "data.pkl" not in tails:
        found = "a zip archive that torch.save did not write"
    else:
        return
    raise ModelRefused(
        f"The weights file is {found}; accepted are safetensors, and state dicts that torch.save "
        "wrote (format 'state_dict')"
    )


def _refuse_deflated(entries: list[zipfile.ZipInfo]) -> None:
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ModelRefused(
                f"Entry {entry.filename!r} of the torch archive is compressed; "
                "torch.save stores entries as they are"
            )


def _refuse_objects(pickle_bytes: bytes) -> None:
    """Walk the opcodes (nothing is executed) and look at every global name."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickle_bytes):
        if opcode.name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
        elif opcode.name == "STACK_GLOBAL":
            module, attribute = strings[-2:] if len(strings) >= 2 else ("?", "?")
        else:
            if isinstance(argument, str):
                strings.append(argument)
            continue
        is_layer = module.startswith("torch.nn.modules")
        if module.split(".")[0] not in ALLOWED_ROOTS or is_layer:
            raise ModelRefused(
                f"The torch archive holds pickled objects ({module}.{attribute}), not only "
                "tensors; save model.state_dict(), best as safetensors"
            )
