"""The names of architectures, listed and checked without torch.

A name is one of: a built-in (`cifar_resnet20`), a torchvision classification model
(`torchvision/resnet18`, or plainly `resnet18`), a timm model (`timm/<name>`, where timm is
installed), an operator's plug-in (entry point group `paretopress.models`), or the user's own
builder (`package.module:builder`). The name `onnx` stands for a file that holds its network itself.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re

from compression.errors import ModelRefused

ENTRY_POINT_GROUP = "paretopress.models"
"""Installed distributions add architectures here: `name = "package.module:builder"`."""

CIFAR_RESNET_DEPTHS = (20, 32, 44, 56, 110)

BUILTIN_NAMES: tuple[str, ...] = (
    *(f"cifar_resnet{depth}" for depth in CIFAR_RESNET_DEPTHS),
    "cifar_vgg16",
    "digits_cnn",
)

# A literal list, because asking torchvision means importing torch; a test compares the two.
_TORCHVISION = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
    densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
    efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l
    efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75
    mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
    regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
    regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
    resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
    shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t
    swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
    vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
TORCHVISION_NAMES: tuple[str, ...] = tuple(_TORCHVISION.split())

ONNX_NAME = "onnx"
"""Architecture of models of the format `onnx`: the file says it; it is not listed."""

TORCHVISION_PREFIX = "torchvision/"
TIMM_PREFIX = "timm/"

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_USER_CODE = re.compile(rf"({_IDENTIFIER}(?:\.{_IDENTIFIER})*):({_IDENTIFIER})")


def plugin_names() -> tuple[str, ...]:
    """Return the names that installed distributions add, sorted; none of them is imported."""
    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return tuple(sorted({entry.name for entry in found}))


def architectures() -> tuple[str, ...]:
    """Return every name that can be listed: built-in, plug-in, torchvision, in this order.

    timm's names are not listed: reading them would import torch.
    """
    torchvision = (TORCHVISION_PREFIX + name for name in TORCHVISION_NAMES)
    return (*BUILTIN_NAMES, *plugin_names(), *torchvision)


def is_user_code(name: str) -> bool:
    """Return whether the name says `package.module:builder`."""
    return ":" in name


def split_user_code(name: str) -> tuple[str, str]:
    """Return the module and the builder of `package.module:builder`.

    Raises:
        ModelRefused: The name does not have that form.
    """
    match = _USER_CODE.fullmatch(name)
    if match is None:
        raise ModelRefused(
            f"Architecture {name!r} is not of the form 'package.module:builder' with plain "
            "Python identifiers"
        )
    return match.group(1), match.group(2)


def check_name(name: str) -> None:
    """Accept a name that can be built, as far as this is knowable without torch.

    Raises:
        ModelRefused: No architecture has this name, or timm is not installed.
    """
    if is_user_code(name):
        split_user_code(name)
        return
    if name == ONNX_NAME:
        return
    if name.startswith(TIMM_PREFIX):
        if importlib.util.find_spec("timm") is None:
            raise ModelRefused(f"Architecture {name!r} needs timm, which is not installed here")
        return
    known = (*BUILTIN_NAMES, *plugin_names(), *TORCHVISION_NAMES)
    if name in known or name.removeprefix(TORCHVISION_PREFIX) in TORCHVISION_NAMES:
        return
    close = difflib.get_close_matches(name, [*known, *architectures()], n=3)
    hint = f"close names: {', '.join(close)}" if close else f"built in: {', '.join(BUILTIN_NAMES)}"
    raise ModelRefused(
        f"No architecture is named {name!r}; {hint}; or name your own code as "
        "'package.module:builder'"
    )
