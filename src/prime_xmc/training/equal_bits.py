"""What results depend on to the last bit besides the settings: said where a run is continued under something else."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

COMPUTED_ON = "computed_on"  # key of a checkpoint under which it says what has computed it
_NAMES = {
    "torch": "torch version",
    "threads": "number of threads",
    "processes": "number of processes",
    "device": "device",
    "vectors": "instruction set of the processor",
}


def computed_on(device: torch.device, processes: int) -> dict[str, Any]:
    """Return what the order of sums, and with it their last bits, depends on, as plain values.

    Args:
        device: Device that computes.
        processes: Number of processes that train together.
    """
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def warn_of_other_bits(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any], *, keeps_float32: bool = False
) -> None:
    """Say in the log that a run goes on where its results may have other last bits, if it does.

    Args:
        recorded: What `computed_on` returned where the checkpoint was written; None: it does not say.
        here: The same here.
        keeps_float32: Whether outputs of frozen layers are kept in float32, which has the last bits of what was
            computed with them; rounding to float16 leaves these out.
    """
    reasons = [
        f"another {name}, {recorded[key]} in the checkpoint, {here[key]} now"
        for key, name in _NAMES.items()
        if recorded is not None and key in recorded and recorded[key] != here[key]
    ]
    if here["device"] != "cpu":
        reasons.append("a device other than the CPU, which adds in no fixed order")
    if keeps_float32:
        reasons.append("outputs of frozen layers that are computed anew in float32, together with other texts")
    if reasons:
        logger.warning(
            "the run goes on with %s: its results are as good, but need not equal those of an uninterrupted run to "
            "the bit",
            "; ".join(reasons),
        )
