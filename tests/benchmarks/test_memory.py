"""The benchmark of resident memory: its figures from readings, its command line, its errors."""

import os

import pytest

from benchmarks import memory
from ketools.errors import KetoolsError


def readings(totals):
    return [[{"anonymous": total - 1.0, "files": 1.0}, {"anonymous": total, "files": 1.0}] for total in totals]


def test_ratios_are_to_the_tenth_batch():
    figures = memory.summary(readings([50.0] * 9 + [100.0, 130.0, 110.0]))
    assert figures["median_mib"][9] == 100.5 and figures["peak_mib"][9] == 101.0
    assert figures["ratio_median"] == pytest.approx(110.5 / 100.5)
    assert figures["ratio_highest_peak"] == pytest.approx(131 / 101)
    assert figures["files_mib"] == [1.0] * 12
    assert memory.table(figures)[-2].startswith("batch 12 / batch 10: 1.100")


def test_a_process_s_own_memory_is_read_and_that_of_one_that_is_gone_is_not():
    held = memory.resident(os.getpid())
    assert set(held) == {"anonymous", "files"} and 10 < sum(held.values()) < 1e6
    assert memory.resident(2**22 + 1) == {}


def test_too_few_batches_is_one_line_and_exit_code_2(capsys):
    assert memory.main(["--edits", "20", "--batch", "10"]) == 2
    assert "expected more than 10" in capsys.readouterr().err


def test_a_run_that_fails_says_why(tmp_path):
    words = [memory.sys.executable, "-c", "import sys; sys.stderr.write('no such model'); sys.exit(2)"]
    with pytest.raises(KetoolsError, match="exit code 2: no such model"):
        memory.watched(words, tmp_path)
