"""Reports: what training runs have left, read, compared, and written as a page and as tables."""
