"""Users' tables, read and written row by row: CSV, TSV, JSON lines, plain text, Parquet and Arrow."""
