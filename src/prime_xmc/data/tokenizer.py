"""The tokenizer that belongs to an encoder."""

import transformers
from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing


def load_tokenizer(source: str) -> transformers.PreTrainedTokenizerFast:
    """Load an encoder's tokenizer; no code from the folder or the hub is run.

    Those of decoders often lack what an encoder's have. A tokenizer that ends texts without a special token is made to
    end them with its end token (eos): the last token, whose embedding may be the text's, is then the same for all
    texts, and an empty text has a token. Without a padding token the end token, masked, pads. Padding is on the right.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.

    Raises:
        ValueError: If there is none, none of the fast kind (tokenizer.json), or none that pads and marks texts, with
            what to do.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:  # ValueError: a folder without a tokenizer
        raise ValueError(
            f"encoder.source={source}: its tokenizer cannot be loaded: {error}\nGive a folder with tokenizer.json, or "
            "a hub id on a machine that reaches the hub"
        ) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ValueError(f"encoder.source={source}: expected a fast tokenizer with a padding token, got {tokenizer}")
    tokenizer.padding_side = "right"
    backend = tokenizer.backend_tokenizer
    if tokenizer.eos_token is not None and not _ends_with_special_token(backend):
        _end_with(backend, tokenizer.eos_token)
    if not backend.encode("").ids:
        raise ValueError(f"encoder.source={source}: expected a tokenizer with special tokens, got {tokenizer}")
    return tokenizer


def _ends_with_special_token(tokenizer: Tokenizer) -> bool:
    mask = tokenizer.encode("a").special_tokens_mask
    return bool(mask) and mask[-1] == 1


def _end_with(tokenizer: Tokenizer, token: str) -> None:
    end = TemplateProcessing(
        single=["$A", token], pair=["$A", "$B", token], special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = end if before is None else Sequence([before, end])
