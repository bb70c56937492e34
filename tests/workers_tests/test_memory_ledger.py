"""The tests' own ledger holds the laws of every ledger."""

from __future__ import annotations

import pytest

from tests.contracts.ledger import LedgerContract
from tests.contracts.warm_start import WarmStartContract
from tests.memory_ledger import Book, MemoryLedger


class TestMemoryLedger(LedgerContract, WarmStartContract):
    @pytest.fixture
    def ledger(self) -> MemoryLedger:
        return MemoryLedger(Book())
