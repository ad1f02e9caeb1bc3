"""Ranking of labels, metrics, predictions and the table of results."""
