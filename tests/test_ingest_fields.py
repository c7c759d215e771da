"""What the values of fields become, whichever library they come from."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from two_tower.ingest.dataset.fields import clean_fields
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage

VALUES: dict[str, tuple[Any, Any]] = {
    "int64": (np.int64(7), 7),
    "uint8": (np.uint8(7), 7),
    "float32": (np.float32(0.5), 0.5),
    "longdouble": (np.longdouble(0.5), 0.5),
    "bool": (np.bool_(False), False),
    "str": (np.str_("a"), "a"),
    "array": (np.array([1, 2]), [1, 2]),
    "array of texts": (np.array(["a", "b"], dtype=object), ["a", "b"]),
    "matrix": (np.eye(2), [[1.0, 0.0], [0.0, 1.0]]),
    "day": (np.datetime64("2025-01-31"), "2025-01-31 00:00:00"),
    "nanoseconds": (np.datetime64("2025-01-31T10:00", "ns"), "2025-01-31 10:00:00"),
    "timestamp": (pd.Timestamp("2025-01-31"), "2025-01-31 00:00:00"),
    "date": (date(2025, 1, 31), "2025-01-31"),
    "datetime": (datetime(2025, 1, 31, tzinfo=UTC), "2025-01-31 00:00:00+00:00"),
    "price": (Decimal("18.50"), 18.5),
    "whole": (Decimal("18.00"), 18),
    "huge": (Decimal("1e30"), 1e30),
    "beyond": (Decimal("1e999999"), None),
    "nested": ({"a": [np.int32(1), Decimal("1.5")]}, {"a": [1, 1.5]}),
    "nan": (np.float64("nan"), None),
    "nat": (np.datetime64("NaT"), None),
    "pandas nat": (pd.NaT, None),
    "pandas na": (pd.NA, None),
    "decimal nan": (Decimal("NaN"), None),
    "decimal snan": (Decimal("sNaN"), None),
    "decimal infinity": (Decimal("-Infinity"), None),
    "empty": (np.array([]), None),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_what_json_has(tmp_path: Path, name: str) -> None:
    value, expected = VALUES[name]
    fields = {} if expected is None else {"x": expected}
    cleaned = clean_fields({"x": value})
    assert cleaned == fields
    assert type(cleaned.get("x")) is type(expected)
    with DatasetWriter(tmp_path / "d", source="test") as writer:
        writer.add_passage(Passage("p", "text", fields={"x": value}))
    assert [p.fields for p in Dataset.open(tmp_path / "d").passages()] == [fields]
    assert not writer.counts["rejected"]


def test_a_row_of_a_table_of_pandas(tmp_path: Path) -> None:
    table = pd.DataFrame({"price": [18.5], "year": [2025], "sold": [True], "day": ["2025-01-31"]})
    table["day"] = pd.to_datetime(table["day"])
    row = table.iloc[0].to_dict()
    expected = {"price": 18.5, "year": 2025, "sold": True, "day": "2025-01-31 00:00:00"}
    assert clean_fields(row) == expected
