"""What training runs left behind, read, compared, and written as tables and as a page."""
