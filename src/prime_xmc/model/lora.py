"""Low-rank adapters on a transformer that stays as it is otherwise (LoRA), by way of peft."""

import copy
import importlib.util
import warnings
from collections.abc import Sequence

import transformers
from torch import nn


def add_adapters(
    backbone: transformers.PreTrainedModel,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
) -> nn.Module:
    """Return the transformer with adapters, which alone have gradients; their part in its output starts at 0.

    Args:
        backbone: The transformer; it is changed.
        r: Rank of the adapters.
        alpha: What an adapter adds is scaled by alpha / r.
        dropout: Of the adapters' input while training, in [0, 1).
        target_modules: Ends of the names of the linear layers that get one; or, as a string, a regular expression for
            whole names, or "all-linear".

    Raises:
        ImportError: If peft is not installed, with the command that installs it.
        ValueError: If a setting is out of range, or no layer has such a name.

    Source: Hu et al. 2022. All linear layers, not those of attention alone: Dettmers et al. 2023.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError('encoder.lora needs peft: pip install "prime_xmc[lora]"')
    from peft import LoraConfig, get_peft_model  # here: importing it takes seconds

    try:
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            # no part of an embedding
            exclude_modules=None if getattr(backbone, "pooler", None) is None else r"pooler(\..*)?",
        )
        with warnings.catch_warnings():  # of the two libraries about each other
            warnings.filterwarnings(
                "ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning
            )
            return get_peft_model(backbone, config)
    except ValueError as error:
        raise ValueError(f"encoder.lora with r={r}, target_modules={target_modules}: {error}") from error


def merged(backbone: nn.Module) -> transformers.PreTrainedModel:
    """Return the transformer as transformers knows it: adapters are added to a copy of the weights that they adapt."""
    if isinstance(backbone, transformers.PreTrainedModel):
        return backbone
    return copy.deepcopy(backbone).merge_and_unload()  # type: ignore[operator]
