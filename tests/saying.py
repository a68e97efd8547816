"""What a call warns of."""

import re
import warnings
from contextlib import contextmanager


@contextmanager
def said_once(match, *, said=True):
    """Within the block one warning matches, and none if not `said`; others are let through."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    matching = [str(one.message) for one in heard if re.search(match, str(one.message))]
    assert len(matching) == said, matching
    for one in heard:
        if str(one.message) not in matching:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
