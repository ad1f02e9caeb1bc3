"""Predictions over HTTP: the queue in front of the model, its exchange while running, the API, and the page."""
