"""Low-rank adapters (LoRA) on a transformer whose own weights do not change, by peft."""

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
    """Return the transformer with adapters, whose contribution starts at 0 and which alone have gradients.

    Args:
        backbone: Transformer, which is changed in place.
        r: Rank of the adapters.
        alpha: Numerator of the scale alpha / r by which an adapter's output is multiplied.
        dropout: Dropout of the adapters' input during training, in [0, 1).
        target_modules: Endings of the names of the linear layers that get an adapter; or, as a string, a regular
            expression for whole names, or "all-linear".

    Raises:
        ImportError: If peft is not installed, with the command that installs it.
        ValueError: If a setting is out of range, or no layer has such a name.

    Source: Hu et al. 2022; Dettmers et al. 2023 for adapters on all linear layers instead of those of attention.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError('encoder.lora needs peft: pip install ".[lora]" in the clone')
    from peft import LoraConfig, get_peft_model  # here: importing it takes seconds

    try:
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            # the pooler takes no part in an embedding
            exclude_modules=None if getattr(backbone, "pooler", None) is None else r"pooler(\..*)?",
        )
        with warnings.catch_warnings():  # which the two libraries give about each other
            warnings.filterwarnings(
                "ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning
            )
            return get_peft_model(backbone, config)
    except ValueError as error:
        raise ValueError(f"encoder.lora with r={r}, target_modules={target_modules}: {error}") from error


def merged(backbone: nn.Module) -> transformers.PreTrainedModel:
    """Return a model of transformers itself, with the adapters added to a copy of the weights that they adapt."""
    if isinstance(backbone, transformers.PreTrainedModel):
        return backbone
    return copy.deepcopy(backbone).merge_and_unload()  # type: ignore[operator]
