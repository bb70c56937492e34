"""What every `compression.primitives.primitive.Primitive` must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from compression.cost import CostTable
from compression.decisions import Decision
from compression.errors import PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.plan import Plan
from compression.primitives.primitive import Need, Primitive
from compression.site import Site


class PrimitiveContract:
    """Subclass it and provide the fixtures `primitive`, `site`, `other_site`, `costs`.

    `subject_and_context` gives a subject, a context and decisions that apply to them; `content`
    turns a subject into something whose equality means bit-identical.
    """

    @pytest.fixture
    def primitive(self) -> Primitive[Any, Any, Any]:
        raise NotImplementedError

    @pytest.fixture
    def site(self) -> Site:
        """A site that the primitive applies to."""
        raise NotImplementedError

    @pytest.fixture
    def other_site(self) -> Site:
        """A site that it does not apply to."""
        raise NotImplementedError

    @pytest.fixture
    def costs(self) -> CostTable:
        raise NotImplementedError

    @pytest.fixture
    def subject_and_context(self) -> tuple[Any, Any, Mapping[str, Decision]]:
        raise NotImplementedError

    def content(self, subject: Any) -> object:
        raise NotImplementedError

    def test_it_is_described_under_its_decisions_kind(
        self, primitive: Primitive[Any, Any, Any]
    ) -> None:
        description = primitive.describe()
        assert description.name in PRIMITIVES
        assert description.summary.endswith(".")

    def test_it_says_in_words_why_it_does_not_apply(
        self,
        primitive: Primitive[Any, Any, Any],
        site: Site,
        other_site: Site,
        costs: CostTable,
    ) -> None:
        assert primitive.applicable(site, costs) is None
        reason = primitive.applicable(other_site, costs)
        assert reason is not None
        assert len(reason.split()) > 2

    def test_its_options_are_distinct_decisions_of_its_kind_and_end_untouched(
        self, primitive: Primitive[Any, Any, Any], site: Site
    ) -> None:
        *options, last = primitive.space(site, Methods(channel_multiple=2))
        assert last is None
        assert options
        assert len(set(options)) == len(options)
        assert {option.kind for option in options if option} == {primitive.describe().name}

    def test_no_option_is_estimated_dearer_than_the_dense_model(
        self, primitive: Primitive[Any, Any, Any], site: Site, costs: CostTable
    ) -> None:
        dense = costs.cost(Plan())
        for option in primitive.space(site, Methods(channel_multiple=2)):
            if option is not None:
                cost = primitive.estimate(site, option, costs)
                assert cost.macs <= dense.macs
                assert cost.params <= dense.params
                assert cost.weight_bytes <= dense.weight_bytes
                assert (cost.macs, cost.weight_bytes) != (dense.macs, dense.weight_bytes)
                assert primitive.needs(option) <= set(get_args(Need))

    def test_applying_leaves_the_subject_alone_and_repeats_to_the_bit(
        self,
        primitive: Primitive[Any, Any, Any],
        subject_and_context: tuple[Any, Any, Mapping[str, Decision]],
    ) -> None:
        subject, context, decisions = subject_and_context
        before = self.content(subject)
        first, _ = primitive.apply(subject, decisions, context)
        second, _ = primitive.apply(subject, decisions, context)
        assert self.content(subject) == before
        assert self.content(first) != before
        assert primitive.describe().deterministic == (self.content(first) == self.content(second))

    def test_what_it_made_passes_its_own_verification(
        self,
        primitive: Primitive[Any, Any, Any],
        subject_and_context: tuple[Any, Any, Mapping[str, Decision]],
    ) -> None:
        subject, context, decisions = subject_and_context
        after, record = primitive.apply(subject, decisions, context)
        primitive.verify(subject, after, record)
        assert self.content(after) != self.content(subject)

    def test_a_decision_at_an_unknown_site_is_refused(
        self,
        primitive: Primitive[Any, Any, Any],
        subject_and_context: tuple[Any, Any, Mapping[str, Decision]],
    ) -> None:
        subject, context, decisions = subject_and_context
        with pytest.raises(PlanInvalid):
            primitive.apply(subject, {"nowhere": next(iter(decisions.values()))}, context)

    def test_it_names_what_must_come_after_it(self, primitive: Primitive[Any, Any, Any]) -> None:
        constraints = primitive.constraints()
        assert constraints.before
        assert primitive.describe().name not in constraints.before
