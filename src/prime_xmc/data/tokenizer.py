"""The tokenizer that belongs to an encoder."""

import transformers


def load_tokenizer(source: str) -> transformers.PreTrainedTokenizerFast:
    """Load an encoder's tokenizer; no code from the folder or the hub is run.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.

    Raises:
        ValueError: If there is none, or none of the fast kind (tokenizer.json), with what to do.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise ValueError(
            f"encoder.source={source}: its tokenizer cannot be loaded: {error}\nGive a folder with tokenizer.json, or "
            "a hub id on a machine that reaches the hub"
        ) from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ValueError(f"encoder.source={source}: expected a fast tokenizer with a padding token, got {tokenizer}")
    return tokenizer
