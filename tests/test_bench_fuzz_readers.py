import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import fuzz_readers


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_mutated_files_are_read_or_refused_in_one_line(
    reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz_readers.main(40, 1, reader) == 0, capsys.readouterr().out
