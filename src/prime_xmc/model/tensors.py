"""Files of tensors."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from prime_xmc.files import give_default_mode


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file that others may read where the user's umask lets them.

    Args:
        tensors: The tensors by name, on any device; those on the CPU are not copied.
        path: The file.
    """
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    give_default_mode(path)
