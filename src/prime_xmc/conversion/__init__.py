"""From users' own files to the raw files that training reads."""
