"""The devices that constraints may name: of this machine, boards, and virtual ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from search.device import DeviceSpec, local_device
from search.virtual_target import PROFILES
from service.db.device_agents import PREFIX
from workers.meters import RUNTIMES


class DeviceBook(Mapping[str, DeviceSpec]):
    """Every device by name.

    Listed are the installed runtimes at one thread, the boards that ever registered, and virtual
    targets. Variants of local devices (`local/openvino-2t-b32`) are understood without being
    listed, as far as this machine's cores and the runtime allow.

    Args:
        boards: Stored pools, by name.
        cores: Of this machine; those that this process may use when absent.
    """

    def __init__(self, boards: Mapping[str, DeviceSpec], cores: int | None = None) -> None:
        self.cores = cores if cores is not None else len(os.sched_getaffinity(0))
        plain = (local_device(f"local/{n}") for n, entry in RUNTIMES.items() if entry.installed)
        self._listed: dict[str, DeviceSpec] = {
            **{spec.name: spec for spec in plain if spec is not None},
            **boards,
            **{name: target.device for name, target in PROFILES.items()},
        }

    def __getitem__(self, name: str) -> DeviceSpec:
        """Return a device.

        Raises:
            KeyError: There is none of this name; `refusal` says why.
        """
        if name in self._listed:
            return self._listed[name]
        spec = local_device(name)
        if spec is None or self.refusal(name) is not None:
            raise KeyError(name)
        return spec

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)

    def refusal(self, name: str) -> str | None:
        """Return why a name of the right form is no device here; None where it is one, or none."""
        if name.startswith(PREFIX) and name not in self._listed:
            return (
                f"No board of pool {name.removeprefix(PREFIX)!r} has ever registered; start one "
                "with `paretopress device run`"
            )
        spec = local_device(name)
        if spec is None or name in self._listed:
            return None
        entry = RUNTIMES.get(spec.runtime)
        if entry is None:
            return f"Unknown runtime {spec.runtime!r}; known: {', '.join(RUNTIMES)}"
        if not entry.installed:
            return f"Runtime {spec.runtime!r} needs the package {entry.package!r} on this server"
        if spec.threads > self.cores:
            return f"{name!r} has {spec.threads} threads; this server has {self.cores} cores"
        if spec.batch > 1 and not entry.batches:
            return f"{name!r} has a batch of {spec.batch}; {spec.runtime} times one input at once"
        return None
