import json
import shutil

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from prime_xmc.data.tokenizer import load_tokenizer, token_counter


def test_texts_become_word_pieces_between_special_tokens(tiny_encoder_dir):
    tokenizer = load_tokenizer(str(tiny_encoder_dir))
    assert tokenizer.convert_ids_to_tokens(tokenizer("A red Cat")["input_ids"]) == ["[CLS]", "a", "red", "cat", "[SEP]"]
    assert tokenizer.name_or_path == str(tiny_encoder_dir)
    assert tokenizer.pad_token_id == 0


def test_tokens_are_counted_beyond_what_the_tokenizer_would_cut(tiny_encoder_dir):
    tokenizer = load_tokenizer(str(tiny_encoder_dir))
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert token_counter(tokenizer)(["a red cat", "", "cat " * 1000]) == [5, 2, 1002]


def test_missing_folder(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match=rf"encoder\.source={missing}: its tokenizer cannot be loaded(.|\n)*Give a"):
        load_tokenizer(str(missing))


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=rf"encoder\.source={tmp_path}: its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_encoder_without_its_tokenizer(tmp_path, model_type):
    """transformers makes one of special tokens alone, to which every word is unknown."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(
        ValueError, match=r"no tokens but the special ones.*Put the tokenizer's files beside config.json"
    ):
        load_tokenizer(str(tmp_path))


def test_more_tokens_than_the_encoder_embeds(tmp_path, tiny_encoder_dir):
    source = shutil.copytree(tiny_encoder_dir, tmp_path / "encoder")
    tokenizer = load_tokenizer(str(source))
    tokenizer.add_tokens(["qwertzuiop"])
    tokenizer.save_pretrained(source)
    with pytest.raises(
        ValueError, match=r"its tokenizer has 30523 tokens and its transformer embeds 30522 \(vocab_size"
    ):
        load_tokenizer(str(source))


def test_texts_in_lower_case_where_sentence_transformers_wants_them_so(tmp_path):
    write_tokenizer(tmp_path, eos_token="[END]")
    assert load_tokenizer(str(tmp_path))("Red")["input_ids"] == [0, 2]
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(str(tmp_path))("Red")["input_ids"] == [1, 2]


def test_tokenizer_without_padding_token(tmp_path):
    Tokenizer(WordLevel({"[UNK]": 0, "red": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="expected a fast tokenizer with a padding token"):
        load_tokenizer(str(tmp_path))


def write_tokenizer(directory, **special_tokens):
    Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "[END]": 2}, unk_token="[UNK]")).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | special_tokens
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def test_tokenizer_that_lets_texts_end_without_a_special_token(tmp_path):
    write_tokenizer(tmp_path, eos_token="[END]")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("red")["input_ids"] == [1, 2]
    assert tokenizer("")["input_ids"] == [2]
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[END]", "right")


def test_tokenizer_of_which_an_empty_text_has_nothing(tmp_path):
    write_tokenizer(tmp_path, pad_token="[UNK]")
    with pytest.raises(ValueError, match="expected a tokenizer with special tokens"):
        load_tokenizer(str(tmp_path))


def test_tokenizer_without_a_fast_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(ValueError, match="expected a fast tokenizer with a padding token"):
        load_tokenizer(str(tmp_path))
