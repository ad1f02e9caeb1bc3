"""The tokenizer that belongs to an encoder."""

import json
from collections.abc import Callable
from collections.abc import Sequence as Texts
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.processors import Sequence, TemplateProcessing
from transformers.utils import cached_file

from prime_xmc.foreign import check_encoder_files


def load_tokenizer(source: str) -> transformers.PreTrainedTokenizerFast:
    """Load an encoder's tokenizer; no code from the folder or the hub is run.

    Those of decoders often lack what an encoder's have. A tokenizer that ends texts without a special token is made to
    end them with its end token (eos): the last token, whose embedding may be the text's, is then the same for all
    texts, and an empty text has a token. Without a padding token the end token, masked, pads. Padding is on the right.
    A sentence-transformers folder that has texts put into lower case first (`do_lower_case`) gets it done here.

    Args:
        source: A folder that `save_pretrained` wrote, or a hub id.

    Raises:
        ValueError: If there is none, none with a vocabulary, none of the fast kind (tokenizer.json), or none that pads
            and marks texts, with what to do; or if it has more tokens than the encoder has embeddings of, with both
            numbers.
    """
    if Path(source).is_dir():
        check_encoder_files(Path(source))
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
    _check_vocabulary(source, tokenizer)
    tokenizer.padding_side = "right"
    backend = tokenizer.backend_tokenizer
    if _read_json(source, "sentence_bert_config.json").get("do_lower_case"):
        backend.normalizer = Normalizers([Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])
    if tokenizer.eos_token is not None and not _ends_with_special_token(backend):
        _end_with(backend, tokenizer.eos_token)
    if not backend.encode("").ids:
        raise ValueError(f"encoder.source={source}: expected a tokenizer with special tokens, got {tokenizer}")
    return tokenizer


def token_counter(tokenizer: transformers.PreTrainedTokenizerFast) -> Callable[[Texts[str]], list[int]]:
    """Return a function that counts the tokens of texts, special tokens included, however long the texts are."""
    complete = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    complete.no_padding()
    complete.no_truncation()

    def count(texts: Texts[str]) -> list[int]:
        return [len(encoding) for encoding in complete.encode_batch_fast(texts)]

    return count


def _check_vocabulary(source: str, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that transformers has made up from nothing, and one that the encoder has no embeddings for."""
    vocabulary = tokenizer.get_vocab()
    if not vocabulary.keys() - set(tokenizer.all_special_tokens):
        names = ", ".join(dict.fromkeys(["tokenizer.json", *tokenizer.vocab_files_names.values()]))
        raise ValueError(
            f"encoder.source={source}: its tokenizer has no tokens but the special ones, so that every word would be "
            f"unknown. Put the tokenizer's files beside config.json: tokenizer.json, or what it is made of ({names})"
        )
    num_tokens = max(vocabulary.values()) + 1
    num_embeddings = _read_json(source, "config.json").get("vocab_size")
    if isinstance(num_embeddings, int) and num_tokens > num_embeddings:
        raise ValueError(
            f"encoder.source={source}: its tokenizer has {num_tokens} tokens and its transformer embeds "
            f"{num_embeddings} (vocab_size in config.json): take the tokenizer that the transformer was trained with, "
            "or enlarge the transformer by resize_token_embeddings and save it again"
        )


def _read_json(source: str, name: str) -> dict:
    """Return the content of a file of the encoder's folder, empty where it has none: what is missing is found later."""
    try:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        content = {} if path is None else json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _ends_with_special_token(tokenizer: Tokenizer) -> bool:
    mask = tokenizer.encode("a").special_tokens_mask
    return bool(mask) and mask[-1] == 1


def _end_with(tokenizer: Tokenizer, token: str) -> None:
    end = TemplateProcessing(
        single=["$A", token], pair=["$A", "$B", token], special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = end if before is None else Sequence([before, end])
