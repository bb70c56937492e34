from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from compression.apply import ApplyContext
from compression.catalogue import GRAPH_PRIMITIVES, PRIMITIVES
from compression.cost import CostTable
from compression.decisions import Decision, PruneChannels
from compression.errors import NotCertified
from compression.methods import PRIMITIVES as NAMES
from compression.methods import Methods
from compression.primitives.primitive import Primitive
from compression.primitives.prune_channels import ChannelPruning
from compression.site import Site
from compression.survey import survey
from tests.builders import SHAPE, NormNet, seeded
from tests.contracts.primitive import PrimitiveContract


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    model = seeded(NormNet)
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


class TestChannelPruning(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> ChannelPruning:
        return ChannelPruning()

    @pytest.fixture
    def site(self, context: ApplyContext) -> Site:
        return next(site for site in context.survey.sites if site.name == "conv3")

    @pytest.fixture
    def other_site(self, context: ApplyContext) -> Site:
        return next(site for site in context.survey.sites if site.name == "conv1")

    @pytest.fixture
    def costs(self, context: ApplyContext) -> CostTable:
        return context.survey.costs

    @pytest.fixture
    def subject_and_context(
        self, context: ApplyContext
    ) -> tuple[nn.Module, Any, Mapping[str, Decision]]:
        return context.model, context.module, {"conv3": PruneChannels(keep_channels=5)}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, nn.Module)
        return {name: tensor.tolist() for name, tensor in subject.state_dict().items()}

    def test_its_costs_rise_with_the_channels_kept(self, site: Site, costs: CostTable) -> None:
        primitive = ChannelPruning()
        macs = [
            primitive.estimate(site, option, costs).macs
            for option in primitive.space(site, Methods(channel_multiple=2))
            if option is not None
        ]
        assert macs == sorted(set(macs))

    def test_it_offers_every_selector_that_the_job_allows(self, site: Site) -> None:
        methods = Methods(channel_multiple=4, selectors=("l1", "taylor"))
        *options, _ = ChannelPruning().space(site, methods)
        assert {o.selector for o in options if isinstance(o, PruneChannels)} == {"l1", "taylor"}
        needs = [ChannelPruning().needs(option) for option in options if option is not None]
        assert needs == [frozenset(), frozenset({"labels", "gradients"})] * (len(options) // 2)

    def test_verification_finds_a_changed_weight(self, context: ApplyContext) -> None:
        decisions = {"conv3": PruneChannels(keep_channels=5)}
        after, record = ChannelPruning().apply(context.model, decisions, context.module)
        with torch.no_grad():
            after.get_parameter("classifier.bias")[0] += 0.1
        with pytest.raises(NotCertified, match=r"\['conv3'\].*masked dense"):
            ChannelPruning().verify(context.model, after, record)

    def test_the_model_site_has_no_channels(self, context: ApplyContext) -> None:
        reason = ChannelPruning().applicable(context.survey.sites[-1], context.survey.costs)
        assert reason == "site 'model' has no channels"

    def test_a_frozen_site_stays_untouched(self, site: Site, costs: CostTable) -> None:
        frozen = dataclasses.replace(site, frozen="because the user said so")
        assert ChannelPruning().applicable(frozen, costs) == "because the user said so"


def test_the_catalogue_is_what_jobs_may_allow() -> None:
    primitives: dict[str, Primitive[Any, Any, Any]] = {**PRIMITIVES, **GRAPH_PRIMITIVES}
    assert {name: p.describe().name for name, p in primitives.items()} == {n: n for n in NAMES}
