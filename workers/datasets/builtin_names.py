"""The names of built-in datasets, for processes that must not load them."""

from __future__ import annotations

from compression.errors import DataRefused

BUILTIN_DATASETS: dict[str, str] = {
    "digits": "1,797 grey digits of 8 x 8 pixels, levels 0 to 16 (scikit-learn; no download).",
    "cifar10": "60,000 colour images of 32 x 32 pixels in 10 classes (downloaded).",
    "cifar100": "60,000 colour images of 32 x 32 pixels in 100 classes (downloaded).",
    "mnist": "70,000 grey digits of 28 x 28 pixels (downloaded).",
}
"""Name and one sentence of each."""


def check_builtin(name: str) -> None:
    """Require a known name.

    Raises:
        DataRefused: There is none of this name.
    """
    if name not in BUILTIN_DATASETS:
        raise DataRefused(
            f"No built-in dataset is named {name!r}; there are {', '.join(BUILTIN_DATASETS)}"
        )
