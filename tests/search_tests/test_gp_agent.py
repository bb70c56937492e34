from __future__ import annotations

from types import MappingProxyType

import pytest

from search.agents.gp import Options
from search.errors import ProblemInvalid
from tests.contracts.agent import AgentContract


@pytest.mark.slow
class TestGp(AgentContract):
    name = "gp"
    # The stock sampler takes a second a request on a busy core: the laws see a few of them.
    options = MappingProxyType({"startup_trials": 13})


def test_refuses_an_option_out_of_range() -> None:
    with pytest.raises(ProblemInvalid, match="startup_trials is 1"):
        Options(startup_trials=1)
