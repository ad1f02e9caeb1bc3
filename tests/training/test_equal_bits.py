import logging

import pytest
import torch

from prime_xmc.training.equal_bits import computed_on, warn_of_other_bits

HERE = {"torch": "2.13", "threads": 2, "processes": 1, "device": "cpu", "vectors": "AVX2"}


def test_what_has_computed_a_checkpoint():
    assert computed_on(torch.device("cpu"), 3) == {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": 3,
        "device": "cpu",
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


@pytest.mark.parametrize("recorded", [None, HERE, {"torch": "2.13"}])
def test_nothing_is_said_where_nothing_else_is_known(recorded, caplog):
    warn_of_other_bits(recorded, HERE)
    assert not caplog.records


def test_what_is_another_is_said_with_both_values(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_other_bits(HERE | {"threads": 1, "torch": "2.12"}, HERE)
    (message,) = caplog.messages
    assert "another torch version, 2.12 in the checkpoint, 2.13 now; another number of threads, 1 in" in message
    assert "need not equal those of an uninterrupted run to the bit" in message


def test_outputs_that_are_kept_in_float32_are_said(caplog):
    warn_of_other_bits(HERE, HERE, keeps_float32=True)
    assert "outputs of frozen layers that are computed anew in float32" in caplog.text


def test_a_gpu_is_said_even_where_it_is_the_same(caplog):
    gpu = HERE | {"device": "NVIDIA H100"}
    warn_of_other_bits(gpu, gpu)
    assert "adds in no fixed order" in caplog.text
