"""What a tensor with zeros takes when its zeros are not stored: arithmetic, torch-free."""

from __future__ import annotations


def sparse_bytes(n: int, sparsity: float, bits: int, pattern: str) -> int:
    """Return the bytes of a tensor in the smallest of its plain forms.

    Dense: every weight. Bitmask: one bit per weight and the weights that are not zero. N:M: these
    weights with their places within their group, `ceil(log2 m)` bits each. Scales and headers are
    not counted; an entropy coder may go below.

    Args:
        n: Weights.
        sparsity: Share of zeros, in [0, 1].
        bits: Of a stored weight.
        pattern: `unstructured`, or `n:m`.

    >>> sparse_bytes(1024, 0.0, 32, "unstructured"), sparse_bytes(1024, 0.9, 32, "unstructured")
    (4096, 536)
    >>> sparse_bytes(1024, 0.5, 8, "2:4"), sparse_bytes(1024, 0.5, 1, "unstructured")
    (640, 128)
    """
    kept = n - round(n * sparsity)
    forms = [_bytes(n * bits), _bytes(n) + _bytes(kept * bits)]
    group = pattern.partition(":")[2]
    if group:
        place_bits = (int(group) - 1).bit_length()
        forms.append(_bytes(kept * bits) + _bytes(kept * place_bits))
    return min(forms)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
