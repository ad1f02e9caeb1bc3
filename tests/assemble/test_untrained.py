"""The Trainer of a configuration."""

import pytest

from prime_xmc.assemble import make_trainer


@pytest.mark.parametrize("name", ["train", "classify"])
def test_a_trainer_without_checkpoints_has_no_callback_for_them(custom, name, tmp_path):
    """In version 0.1.0, that was the default of the second stage."""
    given = [f"run_dir={tmp_path}", "logger=null", *(["model.dir=m"] if name == "classify" else [])]
    assert make_trainer(custom(*given, name=name)).checkpoint_callbacks
    assert not make_trainer(custom(*given, "trainer.enable_checkpointing=false", name=name)).checkpoint_callbacks
