"""PyTorch compiled by Inductor into C++, to be timed; loading takes seconds to minutes."""

from __future__ import annotations

import shutil

import torch

from workers.errors import DeviceUnknown, FileRefused
from workers.meters import LoadedModel
from workers.meters.torch_eager import LoadedModule, TorchEager, input_shape, module_of

COMPILERS = ("g++", "clang++", "c++")


class TorchCompiled(TorchEager):
    """See `workers.meters.Runtime`.

    Compiled for one batch and one number of threads (it is written into the generated code), with
    weights frozen as constants. What is compiled is run once when it is loaded.

    Raises:
        DeviceUnknown: No C++ compiler is installed.
    """

    def __init__(self, threads: int, seed: int) -> None:
        super().__init__(threads, seed)
        if not any(shutil.which(name) for name in COMPILERS):
            raise DeviceUnknown(
                f"Runtime 'torch_compile' needs a C++ compiler ({', '.join(COMPILERS)}) on PATH"
            )

    def load(self, file: bytes, batch: int = 1) -> LoadedModel:
        """See `Runtime`."""
        data = torch.from_numpy(self.fixed_input(input_shape(file, batch)))
        # Every file is another network to Dynamo, which otherwise stops compiling after a few.
        torch.compiler.reset()
        compiled = torch.compile(
            module_of(file, batch),
            fullgraph=True,
            dynamic=False,
            options={"cpp.threads": self.threads, "freezing": True, "compile_threads": 1},
        )
        model = LoadedModule(compiled, data)
        try:
            model.run()
        except RuntimeError as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise FileRefused(f"PyTorch cannot compile the file: {reason}") from error
        return model
