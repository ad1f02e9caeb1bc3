"""Labels are added, removed and renamed: every part of the model follows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.label_changes import Example, NewLabel, add_labels, mean_queries, remove_labels, rename_labels
from prime_xmc.export.label_tables import read_label_tables

NEW = [NewLabel("n1", "purple dragon"), NewLabel("n2", "orange boat")]
EXAMPLES = [Example("a dragon that is purple", ("n1",)), Example("a purple dragon in a boat", ("n1", "l3", "n2"))]


@pytest.fixture
def tables(ensemble_model):
    return read_label_tables(ensemble_model)


@pytest.fixture
def bare_tables(copy):
    return read_label_tables(copy)


class TestAdd:
    def test_rows_follow_those_of_the_others(self, tables, predictor):
        after = add_labels(tables, predictor, NEW, EXAMPLES)
        assert after.records[:48] == tables.records
        assert after.records[48:] == [
            {"uid": "n1", "text": "purple dragon", "added": 2, "queries": 2},
            {"uid": "n2", "text": "orange boat", "added": 2, "queries": 1},
        ]
        for name in ("label_emb", "prototypes", "centroids", "classifiers"):
            part = getattr(after, name)
            assert torch.equal(part[:48], getattr(tables, name))
            assert part.shape == (50, 32)
            assert part.dtype == getattr(tables, name).dtype
        assert after.network["cluster_of_label"].shape == (50,)
        torch.testing.assert_close(after.prototypes.norm(dim=1), torch.ones(50))

    def test_centroids_are_means_of_queries(self, tables, predictor):
        after = add_labels(tables, predictor, NEW, EXAMPLES)
        emb = predictor.encode([example.text for example in EXAMPLES])
        torch.testing.assert_close(after.centroids[48:], torch.stack([emb.mean(dim=0), emb[1]]))

    def test_without_queries_the_text_stands_for_them(self, tables, predictor):
        after = add_labels(tables, predictor, NEW)
        torch.testing.assert_close(after.centroids[48:], predictor.encode([label.text for label in NEW]))
        assert torch.equal(after.voters.query_emb, tables.voters.query_emb)
        assert [record["queries"] for record in after.records[48:]] == [0, 0]

    def test_queries_vote_for_all_of_their_labels(self, tables, predictor):
        after = add_labels(tables, predictor, NEW, EXAMPLES)
        assert [row.tolist() for row in after.voters.labels] == [[0, 1], [1, 2], [48], [3, 48, 49]]
        emb = predictor.encode([example.text for example in EXAMPLES])
        assert torch.equal(after.voters.query_emb, torch.cat([tables.voters.query_emb, emb.half()]))

    def test_words_lead_to_the_new_labels(self, tables, predictor):
        after = add_labels(tables, predictor, NEW, EXAMPLES)
        index = after.lexical.scorer(50, "cpu")
        scores = index.scores(predictor.tokenise(["purple dragon", "orange boat", "red cat"]))
        assert scores.argmax(dim=1).tolist()[:2] == [48, 49]
        torch.testing.assert_close(
            scores[2, :48], tables.lexical.scorer(48, "cpu").scores(predictor.tokenise(["red cat"]))[0]
        )

    def test_history(self, tables, predictor):
        once = add_labels(tables, predictor, NEW, EXAMPLES)
        twice = add_labels(once, predictor, [NewLabel("n3", "grey stone")])
        assert twice.config["version"] == 3
        assert [(entry["version"], entry["labels"], entry["queries"]) for entry in twice.config["history"]] == [
            (2, 2, 2),
            (3, 1, 0),
        ]
        assert twice.records[-1]["added"] == 3
        assert "version" not in tables.config

    def test_a_model_of_prototypes_alone(self, bare_tables, predictor):
        after = add_labels(bare_tables, predictor, NEW, EXAMPLES)
        assert len(after.prototypes) == 50
        assert (after.classifiers, after.voters, after.lexical) == (None, None, None)

    @pytest.mark.parametrize(
        ("labels", "examples", "message"),
        [
            ([], [], "expected labels to add, got none"),
            ([NewLabel(" n1", "x"), NewLabel("", "y")], [], "' n1', '': empty, or with blanks around it"),
            ([NewLabel("l3", "x")], [], "'l3': in the model already; rename it, or remove it before"),
            ([NewLabel("n", "x"), NewLabel("n", "y")], [], "'n': given more than once"),
            ([NewLabel("n", " ")], [], "'n': neither a text nor a query; give one"),
            (NEW, [Example("q", ("n7",))], "example query 1, 'q': there is no label 'n7', neither among"),
            (NEW, [EXAMPLES[0], Example("q", ("l3",))], "example query 2, 'q': none of its labels is to be added"),
            (NEW, [Example("q", ())], "example query 1, 'q': none of its labels"),
        ],
    )
    def test_mistakes(self, tables, predictor, labels, examples, message):
        with pytest.raises(ValueError, match=message):
            add_labels(tables, predictor, labels, examples)

    def test_a_query_is_enough(self, tables, predictor):
        after = add_labels(tables, predictor, [NewLabel("n", "")], [Example("q", ("n",))])
        assert after.records[-1]["queries"] == 1


class TestRemove:
    def test_what_was_added_is_gone(self, tables, predictor):
        after = remove_labels(add_labels(tables, predictor, NEW, EXAMPLES), ["n2", "n1"])
        assert after.records == tables.records
        for name in ("label_emb", "prototypes", "centroids", "classifiers"):
            assert torch.equal(getattr(after, name), getattr(tables, name)), name
        assert torch.equal(after.network["cluster_of_label"], tables.network["cluster_of_label"])
        assert [row.tolist() for row in after.voters.labels] == [[0, 1], [1, 2], [3]]
        texts = predictor.tokenise(["a red cat", "green river"])
        before = tables.lexical.scorer(48, "cpu").scores(texts)
        torch.testing.assert_close(after.lexical.scorer(48, "cpu").scores(texts), before)
        assert [entry["change"] for entry in after.config["history"]] == ["add", "remove"]

    def test_rows_behind_move_up(self, tables):
        after = remove_labels(tables, ["l0", "l2"])
        assert [record["uid"] for record in after.records[:3]] == ["l1", "l3", "l4"]
        assert torch.equal(after.prototypes, tables.prototypes[[1, *range(3, 48)]])
        assert [row.tolist() for row in after.voters.labels] == [[0], [0]]

    def test_queries_without_a_label_vote_no_more(self, tables):
        after = remove_labels(tables, ["l0", "l1"])
        assert [row.tolist() for row in after.voters.labels] == [[0]]
        assert torch.equal(after.voters.query_emb, tables.voters.query_emb[1:])

    @pytest.mark.parametrize(
        ("uids", "message"),
        [
            (["x", "l1", "y"], "'x', 'y': no label of the model has this uid"),
            ([], "expected the uid of a label at least"),
            ([f"l{row}" for row in range(48)], "all 48 labels would be removed"),
        ],
    )
    def test_mistakes(self, tables, uids, message):
        with pytest.raises(ValueError, match=message):
            remove_labels(tables, uids)

    def test_uids_of_several_labels(self, tables):
        tables.records[5]["uid"] = "l4"
        with pytest.raises(ValueError, match="'l4': several labels of the model have this uid"):
            remove_labels(tables, ["l4"])


class TestRename:
    def test_prototype_and_words_follow_the_text(self, tables, predictor):
        after = rename_labels(tables, predictor, [NewLabel("l7", "purple dragon")])
        assert after.records[7] == {"uid": "l7", "text": "purple dragon", "renamed": 2}
        others = [row for row in range(48) if row != 7]
        for name in ("label_emb", "prototypes"):
            assert torch.equal(getattr(after, name)[others], getattr(tables, name)[others])
            assert not torch.allclose(getattr(after, name)[7], getattr(tables, name)[7])
        assert torch.equal(after.centroids, tables.centroids)
        assert torch.equal(after.classifiers, tables.classifiers)
        scores = after.lexical.scorer(48, "cpu").scores(predictor.tokenise(["purple dragon"]))
        assert scores.argmax().item() == 7

    def test_and_back(self, tables, predictor):
        text = tables.records[1]["text"]
        there = rename_labels(tables, predictor, [NewLabel("l1", "purple dragon")])
        back = rename_labels(there, predictor, [NewLabel("l1", text)])
        torch.testing.assert_close(back.prototypes, tables.prototypes, atol=1e-5, rtol=0)
        tokens = predictor.tokenise(["a red house", "cat that"])
        before, after = (each.lexical.scorer(48, "cpu").scores(tokens) for each in (tables, back))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)

    def test_without_queries_the_centroid_follows_too(self, tables, predictor):
        added = add_labels(tables, predictor, NEW, EXAMPLES[:1])
        after = rename_labels(added, predictor, [NewLabel("n2", "yellow ship"), NewLabel("n1", "violet dragon")])
        torch.testing.assert_close(after.centroids[49], predictor.encode(["yellow ship"])[0])
        assert torch.equal(after.centroids[48], added.centroids[48])

    def test_the_same_where_training_had_no_query(self, tables, predictor):
        tables.records[5]["queries"] = 0
        after = rename_labels(tables, predictor, [NewLabel("l5", "yellow ship")])
        torch.testing.assert_close(after.centroids[5], predictor.encode(["yellow ship"])[0])

    def test_of_a_text_of_several_fields_that_is_not_known_as_a_whole(self, tables, predictor):
        config = tables.config | {"query": {"fields": ["title", "content"]}}
        several = replace(tables, config=config)
        with pytest.raises(ValueError, match=r"'l5': the model knows the first of several fields .* remove the label"):
            rename_labels(several, predictor, [NewLabel("l5", "yellow ship")])
        added = add_labels(several, predictor, NEW, EXAMPLES)
        assert rename_labels(added, predictor, [NewLabel("n2", "yellow ship")]).records[49]["text"] == "yellow ship"
        rename_labels(replace(several, lexical=None), predictor, [NewLabel("l5", "yellow ship")])
        own = tables.config | {"settings": {"config": {"dataset": {"label_fields": ["title"]}}}}
        rename_labels(replace(several, config=config | own), predictor, [NewLabel("l5", "yellow ship")])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([NewLabel("x", "y")], "'x': no label of the model has this uid"),
            ([NewLabel("l1", "")], "'l1': the new text is empty"),
            ([NewLabel("l1", "a"), NewLabel("l1", "b")], "'l1': given more than once"),
        ],
    )
    def test_mistakes(self, tables, predictor, labels, message):
        with pytest.raises(ValueError, match=message):
            rename_labels(tables, predictor, labels)


def test_mean_of_queries():
    emb = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = mean_queries(emb, Ragged.from_rows([[0, 2], [0]]), torch.tensor([[9.0, 9.0], [5.0, 5.0], [9.0, 9.0]]))
    assert found.tolist() == [[0.5, 0.5], [5.0, 5.0], [1.0, 0.0]]


def test_rows_and_texts_of_training_queries_follow(tables, predictor):
    """Example queries are in no row of the training file."""
    known = tables.voters._replace(rows=np.array([4, 9]), texts=["a cat that is red", "a house by the green river"])
    kept = replace(tables, voters=known)
    added = add_labels(kept, predictor, NEW, EXAMPLES).voters
    assert added.rows.tolist() == [4, 9, -1, -1]
    assert list(added.texts) == [*known.texts, *(example.text for example in EXAMPLES)]
    removed = remove_labels(kept, ["l0", "l1"]).voters
    assert (removed.rows.tolist(), list(removed.texts)) == ([9], known.texts[1:])
    assert add_labels(tables, predictor, NEW, EXAMPLES).voters[2:] == (None, None)
