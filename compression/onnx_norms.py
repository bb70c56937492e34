"""BatchNorm nodes of an ONNX graph, told in the fewest numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_FLOAT = np.float32


def shorten_norms(model: ModelProto) -> int:
    """Give every BatchNorm with constant float32 statistics a mean of 0 and a deviation of 1.

    In inference BatchNorm is one factor and one offset for each channel: `factor = gamma /
    sqrt(var + eps)` and `offset = beta - mean * factor` (Ioffe and Szegedy 2015, algorithm 2,
    line 11). They become gamma and beta (worked out in float64, rounded once), and all norms of
    one width share their mean and variance, so half of the numbers leave the file.

    Args:
        model: Changed in place; initializers that nothing reads any more are taken out.

    Returns:
        Number of norms changed.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    taken = {value for node in model.graph.node for value in (*node.input, *node.output)}
    taken |= set(tensors)
    changed = 0
    for node in model.graph.node:
        found = _statistics(node, tensors)
        if found is None:
            continue
        (gamma, beta, mean, var), eps = found
        factor = gamma / np.sqrt(var + eps)
        short = {
            "scale": factor,
            "offset": beta - mean * factor,
            "mean": np.zeros_like(gamma),
            # Runtimes add epsilon to the variance; some refuse an epsilon of 0.
            "var": np.full_like(gamma, 1.0 - eps),
        }
        for place, (role, values) in enumerate(short.items(), start=1):
            shared = role in ("mean", "var")
            name = f"norm.{role}.{len(gamma)}.{eps}" if shared else f"{node.output[0]}.{role}"
            if name not in tensors:
                while name in taken:
                    name += "_"
                tensors[name] = numpy_helper.from_array(values.astype(_FLOAT), name)
                model.graph.initializer.append(tensors[name])
            node.input[place] = name
        changed += 1
    used = {value for node in model.graph.node for value in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return changed


def _statistics(
    node: NodeProto, tensors: dict[str, TensorProto]
) -> tuple[list[NDArray[np.float64]], float] | None:
    """Return gamma, beta, mean, variance and epsilon, where all are constant and ordinary."""
    if node.op_type != "BatchNormalization" or any(name not in tensors for name in node.input[1:]):
        return None
    values = [tensors[name] for name in node.input[1:5]]
    if any(tensor.data_type != TensorProto.FLOAT for tensor in values):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    eps = float(attributes.get("epsilon", 1e-5))
    vectors = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in values]
    if attributes.get("training_mode", 0) or not 0.0 <= eps < 0.5 or min(vectors[3]) + eps <= 0:
        return None
    return vectors, eps
