"""The sanitiser's rules: none is dropped, each takes out what it is for, none touches a claim."""

import re
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

from ketools.course import check_claim

TEXT = (Path(__file__).parent / "sanitize.cfg").read_text(encoding="utf-8")
PATTERNS = get_sanitize_patterns(TEXT)


def sanitized(text):
    for regex, replacement in PATTERNS:  # as nbval does it
        text = re.sub(regex, replacement, text)
    return text


def test_nbval_reads_every_rule():
    assert len(PATTERNS) == TEXT.count("\nregex:") == TEXT.count("\nreplace:") == len(re.findall(r"^\[", TEXT, re.M))


def test_a_replacement_by_nothing_would_be_dropped():
    assert get_sanitize_patterns("regex: a\nreplace:\n") == [], "nbval mends this: the warning in sanitize.cfg can go"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 3.2 s", "took 12 s"),
        ("on 2026-11-20T23:37:19+00:00", "on 2027-01-02"),
        ("<object at 0x7f5441d22fc0>", "<object at 0x7f0000000000>"),
        ("torch 2.13.0+cpu, pandas 3.1.1", "torch 2.11.0, pandas 2.2"),
        ("-0.000", "0.000"),
        (
            "holds: it grows: 1.5 >= 1\nholds: a: b: 2e-07 >= 0 and <= 1",
            "holds: it grows: 3 >= 1\nholds: a: b: 1 >= 0 and <= 1",
        ),
    ],
)
def test_what_differs_from_run_to_run_is_alike(one, other):
    assert one != other and sanitized(one) == sanitized(other)


@pytest.mark.parametrize(
    ("one", "other"), [("0.52", "0.53"), ("-0.5", "0.5"), ("20 steps", "21 steps"), ("-0.05", "0.05")]
)
def test_results_are_not(one, other):
    assert sanitized(one) != sanitized(other)


def test_a_claim_keeps_all_but_its_number():
    said = check_claim("the norm grows 1.5-fold in 100 edits", 2, at_least=1.5)
    assert sanitized(said) == "holds: the norm grows 1.5-fold in 100 edits (at least 1.5)"
