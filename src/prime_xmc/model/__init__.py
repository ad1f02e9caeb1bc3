"""Encoder, label prototypes and losses."""
