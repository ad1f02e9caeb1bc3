"""The exported model: writing it, opening it, and its classifiers."""
