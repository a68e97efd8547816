"""What the attacks share."""

from tests.runs.conftest import statistics  # noqa: F401 - a fixture
