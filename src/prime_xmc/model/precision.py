"""The precision that a device computes natively."""

import torch


def native_precision(accelerator: str) -> str:
    """Return Lightning's name of the fastest precision that a device computes natively: bf16-mixed or 32-true.

    bf16 that a processor only emulates is slower than float32.

    Args:
        accelerator: "cpu", or any other name for the machine's GPU.
    """
    if accelerator == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "32-true"
