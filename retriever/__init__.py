"""Searching: a collection that `ingest load` made, asked, measured, tuned and served.

The names of `two_tower` (`Retriever`, `SearchSettings`, …) can be imported from here, too.
"""

from two_tower import __dir__ as __dir__
from two_tower import __getattr__ as __getattr__
