"""Configurations of data of one's own."""

import json

import pytest


@pytest.fixture
def custom(compose):
    return lambda *overrides, name="train": compose("dataset=custom", "dataset.dir=d", *overrides, name=name)


@pytest.fixture
def small(compose, tiny_encoder_dir, tmp_path):
    """Composes the configuration for data without a test file: 20 queries, 3 labels."""
    rows = [{"title": f"red cat {row}", "target_ind": [row % 3]} for row in range(20)]
    for name, lines in (("trn", rows), ("lbl", [{"title": title} for title in ("red", "green", "blue")])):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [f"dataset.dir={tmp_path}", f"cache_dir={tmp_path}/cache", f"encoder.source={tiny_encoder_dir}"]
    return lambda *overrides: compose("dataset=custom", "encoder=local", *paths, *overrides)
