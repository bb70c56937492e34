"""The user's own builders, imported from the folder the operator named with `serve --code`.

`sys.path` stays as it is: a finder of our own, *last* on `sys.meta_path`, looks into that one
folder for top-level names that nothing else provides. So the user's code cannot shadow the
standard library, an installed package or this project, and it can still import its own siblings,
also lazily inside `forward`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compression.errors import ModelRefused
from compression.models.names import split_user_code


class CodeFinder:
    """A meta path finder for the top-level modules of one folder.

    Submodules need no help: Python finds them by their package's `__path__`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where `fullname` is, if it is a top-level module of the folder."""
        if path is not None:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(self.folder)], target)


def build_user_model(name: str, options: Mapping[str, Any], code_dir: str | None) -> nn.Module:
    """Import `package.module:builder` from `code_dir` and call `builder(**options)`.

    Args:
        name: `package.module:builder`.
        options: Keyword arguments of the builder.
        code_dir: The folder of the user's code; None where the operator has not allowed any.

    Raises:
        ModelRefused: Code is not allowed, not found, fails, or returns something else than a
            module.
    """
    module_name, builder_name = split_user_code(name)
    if code_dir is None:
        raise ModelRefused(
            f"Architecture {name!r} is the user's own code, which this server does not import; "
            "start it with --code DIR"
        )
    builder = getattr(_import(module_name, Path(code_dir).resolve()), builder_name, None)
    if not callable(builder):
        raise ModelRefused(f"Module {module_name!r} has no callable named {builder_name!r}")
    return call_builder(name, builder, options)


def call_builder(
    name: str, builder: Callable[..., object], options: Mapping[str, Any]
) -> nn.Module:
    """Call a builder and return its module.

    Raises:
        ModelRefused: The builder does not take these options, fails, or returns no module.
    """
    try:
        model = builder(**options)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise ModelRefused(
            f"Builder {name!r} with options {dict(options)} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelRefused(
            f"Builder {name!r} returned {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def _import(module_name: str, folder: Path) -> ModuleType:
    if not folder.is_dir():
        raise ModelRefused(f"The code folder {folder} does not exist")
    if not any(isinstance(f, CodeFinder) and f.folder == folder for f in sys.meta_path):
        sys.meta_path.append(CodeFinder(folder))
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"Importing {module_name!r} from {folder} failed: {type(error).__name__}: {error}"
        ) from error
    origin = getattr(module, "__file__", None)
    if origin is None or not Path(origin).resolve().is_relative_to(folder):
        raise ModelRefused(
            f"{module_name!r} is {origin or 'built in'}, not a module of {folder}; "
            "rename yours, for an installed one has that name"
        )
    return module
