"""Commands that register what jobs are about: `add-model`, `add-dataset`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paretopress.cli_errors import console, friendly_errors
from paretopress.cli_options import ApiKey, Url, connect

Mean = Annotated[list[float] | None, typer.Option(help="Per channel, after scaling; repeat it.")]


def add_model(
    weights: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="Weights file.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Name that the server knows, for example cifar_resnet56.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Your own builder, my_package.models:build (serve --code).")
    ] = None,
    input_shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="C H W; 3 224 224, or what an ONNX file says."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Your name for it.")] = None,
    format: Annotated[
        str | None, typer.Option(help="safetensors, state_dict, onnx; python without weights.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Stored pixels are divided by this.")] = 255.0,
    mean: Mean = None,
    std: Mean = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Register a trained network and print its identifier."""
    if (architecture is None) == (python is None):
        raise typer.BadParameter("Give exactly one of --architecture and --python")
    if input_shape is None and architecture != "onnx":
        input_shape = (3, 224, 224)
    channels = 1 if input_shape is None else input_shape[0]
    preprocessing = {
        "layout": "NCHW",
        "scale": scale,
        "mean": mean or [0.0] * channels,
        "std": std or [1.0] * channels,
    }
    with friendly_errors(), connect(url, api_key) as client:
        model = client.register_model(
            name=name or architecture or str(python),
            architecture=architecture or {"python": python},
            weights=weights,
            format=format,
            preprocessing=preprocessing,
            input_shape=input_shape,
        )
        console.print(model.id, highlight=False)


def add_dataset(
    data: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="npz, zip, tar or Parquet.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="npz, folders (zip or tar of class folders) or parquet.")
    ] = "npz",
    builtin: Annotated[
        str | None, typer.Option(help="Built-in name instead of a file, for example digits.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Your name for it.")] = None,
    splits: Annotated[
        str | None, typer.Option(help='JSON, for example {"train": 0.8, "seed": 1}.')
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Register a dataset and print its identifier."""
    if (data is None) == (builtin is None):
        raise typer.BadParameter("Give exactly one of a file and --builtin")
    try:
        shares = json.loads(splits) if splits else None
    except ValueError as error:
        raise typer.BadParameter(f"--splits is not JSON: {error}") from error
    with friendly_errors(), connect(url, api_key) as client:
        dataset = client.register_dataset(
            name=name or (data.stem if data else str(builtin)),
            format="builtin" if builtin else format,
            data=data,
            source=builtin,
            splits=shares,
        )
        console.print(dataset.id, highlight=False)
