import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import fuzz_readers


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_mutated_inputs_are_read_or_refused_in_one_line(
    reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 10 if reader == "archives" else 40
    assert fuzz_readers.fuzz(reader, count, 1)["failures"] == 0, capsys.readouterr().out
