"""Folders as sentence-transformers writes them, in the old spelling and the new one."""

import json

import pytest

from prime_xmc.model.encoder_folder import Prompts, resolve_pooling, resolve_prompts

OLD, NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules"


@pytest.fixture
def make(tmp_path):
    """Writes a folder: its modules, the configuration of its pooling, and what else it says."""

    def write(kinds=("Transformer", "Pooling", "Normalize"), pooling=None, about=None, prefix=OLD):
        modules = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"{prefix}.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode": "mean"}))
        if about is not None:
            (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(about))
        return str(tmp_path)

    return write


def flags(*modes):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 8} | {f"pooling_mode_{name}": name in modes for name in names}


class TestPooling:
    def test_folder_of_transformers_alone(self, tmp_path):
        assert resolve_pooling(str(tmp_path), "auto") == "mean"

    @pytest.mark.parametrize("prefix", [OLD, NEW])
    @pytest.mark.parametrize(
        ("pooling", "expected"),
        [
            (flags("mean_tokens"), "mean"),
            (flags("cls_token"), "cls"),
            (flags("lasttoken"), "last"),
            (flags("mean_sqrt_len_tokens"), "mean"),
            (flags(), "mean"),
            ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
            ({"pooling_mode": "cls"}, "cls"),
            ({"pooling_mode": ["lasttoken"]}, "last"),
        ],
    )
    def test_auto_is_what_the_folder_says(self, make, pooling, expected, prefix):
        assert resolve_pooling(make(pooling=pooling, prefix=prefix), "auto") == expected

    @pytest.mark.parametrize(
        ("folder", "said"),
        [
            ({"pooling": flags("max_tokens")}, "pools max, which prime_xmc cannot compute"),
            ({"pooling": flags("weightedmean_tokens")}, "pools weightedmean, which"),
            ({"pooling": flags("mean_tokens", "cls_token")}, "pools cls and mean, which"),
            ({"pooling": {"pooling_mode": ["mean", "max"]}}, "pools mean and max, which"),
            ({"kinds": ("Transformer", "Pooling", "Dense", "Normalize")}, "has the modules .*, of which Dense, which"),
            ({"kinds": ("Transformer",)}, "has the modules Transformer .* and no configuration of a Pooling"),
            (
                {"kinds": ("Transformer", "Pooling"), "about": {"similarity_fn_name": "dot"}},
                "compares embeddings that are not normalised by their dot similarity",
            ),
        ],
    )
    def test_what_cannot_be_computed_is_refused_unless_a_pooling_is_given(self, make, folder, said, caplog):
        source = make(**folder)
        with pytest.raises(ValueError, match=f"encoder.source={source} {said}(.|\n)*give encoder.pooling=mean"):
            resolve_pooling(source, "auto")
        assert resolve_pooling(source, "mean") == "mean"
        assert f"encoder.pooling=mean is used, although {source} " in caplog.text

    @pytest.mark.parametrize("about", [None, {}, {"similarity_fn_name": None}, {"similarity_fn_name": "cosine"}])
    def test_cosine_needs_no_normalisation(self, make, about):
        """The length of a vector has no part in it."""
        assert resolve_pooling(make(kinds=("Transformer", "Pooling"), about=about), "auto") == "mean"

    def test_inner_products_are_those_of_embeddings_that_are_not_normalised(self, make, caplog):
        source = make(kinds=("Transformer", "Pooling"), about={"similarity_fn_name": "dot"})
        for pooling in ("auto", "mean"):
            assert resolve_pooling(source, pooling, normalize=False) == "mean"
        assert caplog.records == []

    def test_a_link_out_of_the_folder_is_named_as_what_it_is(self, make, tmp_path, tmp_path_factory):
        source = make(pooling=flags("cls_token"))
        elsewhere = (tmp_path / "modules.json").rename(tmp_path_factory.mktemp("elsewhere") / "modules.json")
        (tmp_path / "modules.json").symlink_to(elsewhere)
        with pytest.raises(ValueError, match=r"modules\.json is a link to .*outside of its folder") as found:
            resolve_pooling(source, "auto")
        assert "damaged" not in str(found.value)

    def test_another_one_is_given(self, make, caplog):
        source = make(pooling=flags("cls_token"))
        assert resolve_pooling(source, "mean") == "mean"
        assert caplog.messages == [f"encoder.pooling=mean is used, although {source} pools the cls"]
        caplog.clear()
        assert resolve_pooling(source, "cls") == "cls"
        assert caplog.records == []

    def test_unknown(self, tmp_path):
        with pytest.raises(ValueError, match=r"encoder\.pooling to be auto or one of .*, got 'max'"):
            resolve_pooling(str(tmp_path), "max")

    def test_hub_that_is_not_reached(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for source in ("no/such", "/no/such/folder"):
            with pytest.raises(ValueError, match=f"encoder.source={source}: whether it has modules.json cannot be"):
                resolve_pooling(source, "auto")
            assert resolve_pooling(source, "last") == "last"

    def test_hub_that_has_been_reached(self, make, monkeypatch):
        """What it has not is known, too, without asking it again."""
        source = make(pooling=flags("cls_token"))
        monkeypatch.setattr(
            "prime_xmc.model.encoder_folder.try_to_load_from_cache",
            lambda repository, name: f"{source}/{name}" if name != "config_sentence_transformers.json" else object(),
        )
        assert resolve_pooling("some/encoder", "auto") == "cls"
        assert resolve_prompts("some/encoder", "auto", "auto") == Prompts()

    @pytest.mark.parametrize("content", ["{", "[1]", '[{"path": ""}]'])
    def test_damaged(self, make, content, tmp_path):
        source = make()
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(ValueError, match=r"modules\.json.* is damaged"):
            resolve_pooling(source, "auto")


class TestPrompts:
    @pytest.mark.parametrize(
        ("about", "expected"),
        [
            (None, Prompts("", "")),
            ({"prompts": {}}, Prompts("", "")),
            ({"prompts": {"query": "", "document": ""}}, Prompts("", "")),
            ({"prompts": {"query": "query: ", "passage": "passage: "}}, Prompts("query: ", "passage: ")),
            ({"prompts": {"query": "q: ", "document": "d: ", "other": "o: "}}, Prompts("q: ", "d: ")),
            ({"prompts": {"query": "q: "}}, Prompts("q: ", "")),
            ({"prompts": {"task": "t: "}, "default_prompt_name": "task"}, Prompts("t: ", "t: ")),
            ({"prompts": {"query": "q: ", "task": "t: "}, "default_prompt_name": "task"}, Prompts("q: ", "t: ")),
        ],
    )
    def test_auto_is_what_the_folder_says(self, make, about, expected):
        assert resolve_prompts(make(about=about), "auto", "auto") == expected

    def test_given(self, make):
        source = make(about={"prompts": {"query": "q: ", "passage": "p: "}})
        assert resolve_prompts(source, "ask: ", "auto") == Prompts("ask: ", "p: ")
        assert resolve_prompts(source, None, None) == Prompts("", "")

    def test_names_that_do_not_tell(self, make):
        source = make(about={"prompts": {"s2p": "Instruct: "}})
        with pytest.raises(ValueError, match=r"none of them is called query, .*: give encoder\.query_prompt="):
            resolve_prompts(source, "auto", "auto")
        assert resolve_prompts(source, None, None) == Prompts()

    def test_prompts_that_are_not_pooled(self, make):
        pooling = {"pooling_mode": "mean", "include_prompt": False}
        with pytest.raises(ValueError, match="leaves the tokens of its prompts out when it pools"):
            resolve_prompts(make(pooling=pooling, about={"prompts": {"query": "q: "}}), "auto", "auto")
        assert resolve_prompts(make(pooling=pooling, about={"prompts": {}}), "auto", "auto") == Prompts()

    def test_folder_of_transformers_alone(self, tmp_path):
        assert resolve_prompts(str(tmp_path), "auto", "auto") == Prompts()
