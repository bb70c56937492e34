from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.labels import Labels, compact, varies


def test_united_labels_are_one_class_and_zero_joins_nothing() -> None:
    labels = Labels()
    first, second = labels.fresh(3), labels.fresh(3)
    labels.unite(first, torch.where(torch.arange(3) == 1, 0, second))
    classes = labels.classes()
    assert classes[first[0]] == classes[second[0]]
    assert classes[first[1]] != classes[second[1]]
    assert classes[0] == 0
    assert len(set(classes[1:].tolist())) == 4


def test_uniting_along_pixels_keeps_channels_apart() -> None:
    labels = Labels()
    image = torch.stack([labels.fresh(2), labels.fresh(2)], 1).view(1, 2, 2, 1)
    one = labels.unite_all(image, (2, 3))
    classes = labels.classes()
    assert one.shape == (1, 2, 1, 1)
    assert classes[1] == classes[3] != classes[2] == classes[4]


def test_padding_varies_from_nothing() -> None:
    row = torch.tensor([[0, 5, 5], [0, 0, 6]], dtype=torch.int32)
    assert not varies(row[0], 0)
    assert varies(row, 0)
    assert not varies(row, 1)


def test_repeated_dimensions_weigh_nothing() -> None:
    row = torch.arange(4).view(1, 4, 1).expand(7, 4, 9)
    assert [tuple(t.shape) for t in compact(row)] == [(1, 4, 1)]
    assert [tuple(t.shape) for t in compact(row, row.clone())] == [(7, 4, 9)] * 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=20))
def test_classes_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    labels = Labels()
    labels.fresh(12)
    for left, right in pairs:
        labels.unite(torch.tensor([left]), torch.tensor([right]))
    groups = [{label} for label in range(13)]
    for left, right in pairs:
        joined = groups[left] | groups[right]
        for label in joined:
            groups[label] = joined
    classes = labels.classes()
    assert all((classes[a] == classes[b]) == (b in groups[a]) for a in range(13) for b in range(13))
