"""One kind of zero in the weights of an ONNX graph."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper


def positive_zeros(model: ModelProto) -> int:
    """Write every -0 of the float32 weights as +0, and return how many there were.

    A mask multiplied onto negative weights leaves -0. Both zeros compute the same in sums of
    products, but two kinds of them cost a sparse file up to one bit for each zero.

    Args:
        model: Changed in place; nothing but zeros of initializers changes.
    """
    found = 0
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        negative = int(np.count_nonzero(np.signbit(values) & (values == 0)))
        if negative:
            found += negative
            tensor.CopyFrom(numpy_helper.from_array(values + np.float32(0), tensor.name))
    return found
