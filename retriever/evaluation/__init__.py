"""How good a search is: systems, measures, paired tests, reports."""
