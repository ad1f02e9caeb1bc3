"""Clustering and nearest-neighbour search."""
