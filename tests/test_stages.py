"""Settings of the two stages."""

import pytest
from omegaconf import OmegaConf

from prime_xmc.stages import classify_settings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"classify": False, "classify_settings": ["a=1"]}, None),
        ({"classify": True, "classify_settings": []}, []),
        ({"classify": True, "classify_settings": ["a=1", "b=2"]}, ["a=1", "b=2"]),
        ({"classify": None}, None),  # as in version 0.1.0
        ({"classify": []}, []),
        ({"classify": ["a=1"]}, ["a=1"]),
        ({}, None),
    ],
)
def test_the_second_stage_is_asked_for_by_a_plain_key_or_a_list(config, expected):
    assert classify_settings(OmegaConf.create(config)) == expected
