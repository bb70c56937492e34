"""From an ONNX file to a network of plain PyTorch layers that can be trained and compressed.

Every operator becomes a layer of `torch.nn` or a call of a PyTorch function in a
`torch.fx.GraphModule`; layers are named after the file's weights and nodes. Nothing in the file is
executed: it is checked by ONNX's own checker, and read operator by operator. Tensors that lie
outside the file are refused before anything is opened.

Where an exporter has folded BatchNorm into its convolution, the convolution stays one with a
bias: criteria that look at the scales of BatchNorm have nothing to look at in such a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import fx

from compression.errors import ModelRefused
from compression.models.declaration import MAX_INPUT_VALUES
from compression.models.onnx_constants import DTYPES, FOLDED, Budget, fold
from compression.models.onnx_functions import FUNCTIONS
from compression.models.onnx_layers import LAYERS, Handler
from compression.models.onnx_network import Network
from compression.models.onnx_shapes import SHAPES
from compression.models.onnx_values import BATCHES, Activation, Array, Constant, Operator, Value

HANDLERS: Mapping[str, Handler] = {**LAYERS, **FUNCTIONS, **SHAPES}
"""Every operator that is read, on activations."""

MIN_OPSET = 7

_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def import_onnx(
    data: bytes,
    input_shape: tuple[int, int, int] | None = None,
    *,
    handlers: Mapping[str, Handler] = HANDLERS,
) -> fx.GraphModule:
    """Return the network of an ONNX file, float32, on the CPU, in eval mode.

    Its outputs equal those of ONNX Runtime up to rounding, for every batch size, also where the
    file was exported for one batch size.

    Args:
        data: The whole file; weights as initializers or as `Constant` nodes.
        input_shape: C, H, W; None takes it from the file.
        handlers: What is made of each operator on activations.

    Raises:
        ModelRefused: The file is damaged, refers to other files, or has an operator that is not
            read; the message names the node, its operator and the opset.
    """
    model = _parse(data)
    graph = model.graph
    opset = _opset(model)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelRefused(
            f"The ONNX network has {len(inputs)} inputs and {len(graph.output)} outputs; "
            "one of each is read"
        )
    shape, batch = _input(inputs[0], input_shape)
    network = Network(shape, len(data))
    values: dict[str, Value] = {inputs[0].name: network.input}
    for tensor in graph.initializer:
        array = _array(tensor, f"initializer {tensor.name!r}")
        values[tensor.name] = Constant((array, array), tensor.name)
    budget = Budget(len(data))
    for node in graph.node:
        _read(node, values, network, budget, opset, batch, handlers)
    output = values.get(graph.output[0].name)
    if not isinstance(output, Activation):
        raise ModelRefused(
            f"Output {graph.output[0].name!r} of the ONNX network does not depend on its input"
        )
    return network.finish(output)


def _parse(data: bytes) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, TypeError) as error:
        raise ModelRefused(f"Not an ONNX model ({len(data)} bytes): {_line(error)}") from error
    if model.functions or model.graph.sparse_initializer:
        raise ModelRefused("The ONNX file has functions or sparse tensors of its own; inline them")
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelRefused(
                f"ONNX tensor {tensor.name!r} lies outside the file; save the model as one file"
            )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, *_FAILURES) as error:
        raise ModelRefused(f"The ONNX file is not valid: {_line(error)}") from error
    return model


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of the graph; graphs inside attributes, too."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else []
                graphs += [] if attribute.HasField("g") else list(attribute.graphs)


def _opset(model: ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= newest:
        raise ModelRefused(
            f"The ONNX file imports opset {versions}; {MIN_OPSET} to {newest} are read"
        )
    return int(versions[0])


def _input(
    value: ValueInfoProto, declared: tuple[int, int, int] | None
) -> tuple[tuple[int, int, int], int | None]:
    """Return C, H, W, and the batch size where the file fixes it."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT:
        raise ModelRefused(f"Input {value.name!r} of the ONNX network is not a float32 tensor")
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if not kind.HasField("shape"):
        sizes = [None] * 4
    if len(sizes) != 4:
        raise ModelRefused(
            f"Input {value.name!r} of the ONNX network has {len(sizes)} axes; "
            "N, C, H, W are expected"
        )
    found = sizes[1:] if declared is None else list(declared)
    for own, given in zip(sizes[1:], found, strict=True):
        if given is None or given < 1 or (own is not None and own != given):
            raise ModelRefused(
                f"Input {value.name!r} of the ONNX network has shape {sizes[1:]} (C, H, W); "
                f"input_shape is {None if declared is None else list(declared)}"
            )
    c, h, w = (int(size) for size in found if size is not None)
    if c * h * w > MAX_INPUT_VALUES:
        raise ModelRefused(
            f"Input {value.name!r} of the ONNX network has {c * h * w} values; "
            f"at most {MAX_INPUT_VALUES} are accepted"
        )
    return (c, h, w), sizes[0]


def _array(tensor: TensorProto, what: str) -> Array:
    """Return the values of a tensor; they take no more memory than the file."""
    if tensor.data_type not in DTYPES:
        known = TensorProto.DataType.keys()
        name = known[tensor.data_type] if tensor.data_type < len(known) else tensor.data_type
        raise ModelRefused(f"ONNX {what} is {name}; float32 and int64 are read")
    try:
        array = numpy_helper.to_array(tensor)
    except _FAILURES as error:
        raise ModelRefused(
            f"ONNX {what} of shape {list(tensor.dims)} cannot be read: {_line(error)}"
        ) from error
    return np.asarray(array)


def _read(
    node: NodeProto,
    values: dict[str, Value],
    network: Network,
    budget: Budget,
    opset: int,
    batch: int | None,
    handlers: Mapping[str, Handler],
) -> None:
    """Append what a node computes."""
    name = node.name or (node.output[0] if node.output else "")
    missing = [source for source in node.input if source and source not in values]
    if missing:
        raise ModelRefused(
            f"ONNX node {name!r} ({node.op_type}) reads {missing[0]!r}, made nowhere"
        )
    attributes = {
        a.name: _array(a.t, f"constant of node {name!r}")
        if a.HasField("t")
        else helper.get_attribute_value(a)
        for a in node.attribute
    }
    op = Operator(
        name=name,
        kind=node.op_type,
        opset=opset,
        attributes=attributes,
        inputs=[values[source] if source else None for source in node.input],
        outputs=[output for output in node.output if output],
        batch=batch,
    )
    if node.domain not in ("", "ai.onnx"):
        raise op.refuse(f"its operator set is {node.domain!r}")
    if not op.outputs:
        return
    made: Any
    if op.kind == "Constant":
        made = _constant(op)
    elif op.kind in FOLDED and _is_constant(op):
        made = fold(op, budget)
    else:
        made = _append(op, network, handlers)
    results = made if isinstance(made, list | tuple) else [made]
    if len(results) != len(op.outputs) and op.kind not in _ONE_OUTPUT:
        raise op.refuse(f"it has {len(op.outputs)} outputs; {len(results)} are read")
    values.update(zip(op.outputs, results, strict=False))


# Their further outputs, of training, are read by nobody who is read here.
_ONE_OUTPUT = frozenset({"Dropout"})


def _is_constant(op: Operator) -> bool:
    if not all(value is None or isinstance(value, Constant) for value in op.inputs):
        return False
    # Weights that are repeated for every input stay weights.
    return op.kind != "Expand" or op.constant(1).is_fixed


def _append(op: Operator, network: Network, handlers: Mapping[str, Handler]) -> Any:
    handler = handlers.get(op.kind)
    if handler is None:
        raise op.refuse("no layer or function is known for it")
    try:
        return handler(op, network)
    except ModelRefused:
        raise
    except _FAILURES as error:
        raise op.refuse(_line(error)) from error


def _constant(op: Operator) -> Constant:
    kinds = {
        "value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for name, value in op.attributes.items():
        if name in kinds:
            array = np.asarray(value, dtype=kinds[name])
            return Constant((array, array), op.outputs[0])
    raise op.refuse(f"its value is a {', '.join(op.attributes) or 'missing attribute'}")


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


__all__ = ["BATCHES", "HANDLERS", "import_onnx"]
