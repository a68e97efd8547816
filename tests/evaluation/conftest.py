"""What the tests of evaluation share."""

import pytest

from ketools import FactSet
from tests.small_world import small_facts


@pytest.fixture
def facts() -> FactSet:
    """Forty facts with paraphrases and neighbours."""
    return small_facts()
