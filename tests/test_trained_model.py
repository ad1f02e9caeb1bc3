"""`Model`: predictions, metrics, changed labels, and what is saved."""

import inspect
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array, csr_matrix, lil_array

import prime_xmc
from prime_xmc.trained_model import Model, as_label, rows_of


@pytest.fixture
def model(toy_bundle, tmp_path) -> Model:
    return prime_xmc.load(shutil.copytree(toy_bundle, tmp_path / "model"))


# without the tests' own check of types, which is for programmers; the message is for users
rename_labels = inspect.unwrap(Model.rename_labels)


def uids(model: Model, text: str) -> list[str]:
    (prediction,) = model.predict([text], top_k=model.num_labels)
    return [label.uid for label in prediction.labels]


class TestChanges:
    def test_are_seen_at_once_and_saved_when_asked(self, model, tmp_path):
        model.add_labels([("n1", "purple dragon"), "orange boat"], ["a dragon"], [["n1"]])
        model.remove_labels(["l0"])
        model.rename_labels({"l1": "red stone"})
        model.rename_labels([("l1", "grey stone")])
        assert (model.num_labels, model.version) == (49, 5)
        assert model.labels[-2:] == [("n1", "purple dragon"), ("orange boat", "orange boat")]
        assert model.labels[0] == ("l1", "grey stone")
        found = uids(model, "purple dragon")
        assert set(found) == {uid for uid, _ in model.labels}
        assert prime_xmc.load(tmp_path / "model").num_labels == 48
        assert model.save(tmp_path / "second") == tmp_path / "second"
        assert uids(prime_xmc.load(tmp_path / "second"), "purple dragon") == found
        model.remove_labels(["n1"])
        assert prime_xmc.load(tmp_path / "second").version == 5
        model.save()
        assert prime_xmc.load(tmp_path / "second").version == 6

    def test_in_place(self, model, tmp_path):
        workspaces = []
        for label in ("a", "b"):
            model.add_labels([label])
            workspaces.append(model.folder.parent)
        assert not workspaces[0].exists()
        model.save()
        assert prime_xmc.load(tmp_path / "model").num_labels == 50
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_nothing_is_lost_that_others_have_changed(self, model, tmp_path):
        other = prime_xmc.load(tmp_path / "model")
        for each in (model, other):
            each.add_labels(["a"])
        model.save()
        with pytest.raises(ValueError, match="was changed by another process in the meantime"):
            other.save()

    def test_folders_are_not_overwritten(self, model, tmp_path):
        (tmp_path / "second").mkdir()
        with pytest.raises(FileExistsError, match="second exists already"):
            model.save(tmp_path / "second")

    def test_a_change_that_fails_changes_nothing(self, model):
        with pytest.raises(ValueError, match="'l3': in the model already"):
            model.add_labels([("l3", "x")])
        assert (model.num_labels, model.version, model.folder) == (48, 1, model.source)

    def test_a_text_is_not_taken_for_a_list_of_its_letters(self, model):
        for change in (
            lambda: model.remove_labels("l0"),
            lambda: model.add_labels("ab"),
            lambda: model.add_labels(["a"], ["q"], ["a"]),
        ):
            with pytest.raises(ValueError, match=r"expected a list .*: write \[(label|text)\]"):
                change()
        assert model.version == 1

    def test_a_request_of_before_is_not_answered(self, model, tmp_path):
        request = model.request(top_k=3, allow=["l1", "l2", "l3"])
        model.add_labels(["a"])
        model.save(tmp_path / "second")
        with pytest.raises(ValueError, match=r"the labels were changed since .*: call request\(\) again"):
            model.answer(["a red cat"], request)
        request = model.request(top_k=3, allow=["l1", "l2", "l3"])
        model.save(tmp_path / "third")
        (found,) = model.answer(["a red cat"], request)
        assert {label.uid for label in found.labels} == {"l1", "l2", "l3"}

    @pytest.mark.parametrize("what", ["predict", "evaluate"])
    def test_a_call_under_way_is_answered_with_the_labels_of_its_beginning(self, model, monkeypatch, what):
        """As if another thread changed them between search and looking up the labels."""
        call = {
            "predict": lambda: model.predict(["a red cat"], top_k=48)[0].labels,
            "evaluate": lambda: model.evaluate(["a red cat"], [[best]]),
        }[what]
        best = uids(model, "a red cat")[0]
        before, searcher, folder = call(), model.searcher, model.folder

        class Changing:
            def search(self, *arguments):
                found = searcher.search(*arguments)
                if model.version == 1:
                    model.remove_labels(["l0", best] if best != "l0" else ["l0"])
                return found

        monkeypatch.setattr(model._ranked, "searcher", Changing())
        assert call() == before
        assert model.folder != folder
        assert best not in uids(model, "a red cat")

    def test_a_folder_of_before_stays_while_a_thread_answers_from_it(self, model):
        model.add_labels(["a"])
        first, held, told = model.folder, threading.Event(), threading.Event()

        def answering():
            ranked = model._ranked  # as a prediction keeps it
            held.set()
            told.wait()
            assert ranked.folder == first

        thread = threading.Thread(target=answering)
        thread.start()
        held.wait()
        model.add_labels(["b"])
        assert first.is_dir()
        told.set()
        thread.join()
        assert not first.exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda model: model.add_labels([("a\ud800", "x")]), r"label \('a\\ud800', 'x'\) has half a character"),
            (lambda model: model.add_labels(["a"], "ab", [["a"], ["a"]]), r"the single string 'ab': write \[text\]"),
            (lambda model: rename_labels(model, {"l1": None}), r"expected a label as .*, got \('l1', None\)"),
        ],
    )
    def test_what_is_no_label_or_query_is_named(self, model, change, message):
        with pytest.raises(ValueError, match=message):
            change(model)
        assert model.version == 1

    def test_examples_without_labels(self, model):
        with pytest.raises(ValueError, match="expected labels for each of 1 queries, got 0 lists"):
            model.add_labels(["a"], ["q"])


class TestEvaluate:
    def test_is_what_the_ranking_gives(self, model):
        texts = ["a red cat", "a blue house", "an apple"]
        first = [model.predict([text], top_k=1)[0].labels[0] for text in texts]
        right = [[first[0].id], [first[1].id], [(first[2].id + 1) % 48]]
        metrics = model.evaluate(texts, right)
        assert metrics["P@1"] == pytest.approx(2 / 3)
        assert not [name for name in metrics if name.startswith("PS")]
        by_uid = model.evaluate(texts, [[model.labels[row[0]][0]] for row in right])
        assert by_uid == metrics
        weighted = model.evaluate(texts, right, np.ones(48))
        assert weighted["PSP@1"] == pytest.approx(2 / 3)

    def test_of_nothing(self, model):
        assert model.evaluate([], []) == {}
        assert model.evaluate(np.array([], dtype=str), []) == {}

    def test_of_columns_and_generators(self, model):
        texts, right = ["a red cat", "a blue house"], [["l1"], ["l2", "l3"]]
        expected = model.evaluate(texts, right)
        assert model.evaluate(np.array(texts), right) == expected
        assert model.evaluate((text for text in texts), iter(right)) == expected

    @pytest.mark.parametrize("by", ["uid", "id"])
    def test_filtered_labels_take_no_place(self, model, by):
        texts = ["a red cat", "a blue house"]
        best = [[getattr(label, by) for label in each.labels] for each in model.predict(texts, top_k=3)]
        right = [row[1:2] for row in best]
        assert model.evaluate(texts, right)["P@1"] == 0
        assert model.evaluate(texts, right, filtered=[best[0][:1], []])["P@1"] == 0.5
        assert model.evaluate(texts, right, filtered=[row[:1] for row in best])["P@1"] == 1
        with pytest.raises(ValueError, match="expected labels for each of 2 queries, got 1 lists"):
            model.evaluate(texts, right, filtered=[[]])

    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            ("ab", r"got the single string 'ab': write \[text\]"),
            ({"a": "x", "b": "y"}, "got a dictionary: write list"),
        ],
    )
    def test_what_are_no_queries(self, model, queries, message):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(Model.evaluate)(model, queries, [["l1"], ["l2"]])

    @pytest.mark.parametrize(
        ("positives", "message"),
        [
            ([["l1"]], "expected labels for each of 2 queries, got 1 lists"),
            ([["l1"], ["x"]], "query 1: 'x': there is no such label"),
            ([[0], [48]], "query 1: label 48: expected a uid or a row from 0 to 47"),
            ([[0], [True]], "query 1: label True: expected a uid or a row"),
            (
                np.eye(2, 48, dtype=np.int64).tolist(),
                r"query 0: \[1, 0, 0, 0, 0, 0, …\] has a zero or a one for each of the 48",
            ),
            (
                [[0], [0] * 47 + [1]],
                r"query 1: \[0, .* \(multi-hot\); expected the uids or rows of",
            ),
            (["l1", "l2"], r"query 0: expected a list of labels, got the text 'l1': write \[label\]"),
        ],
    )
    def test_mistakes(self, model, positives, message):
        with pytest.raises(ValueError, match=message):
            model.evaluate(["a", "b"], positives)

    def test_a_matrix(self, model):
        texts = ["red cat", "blue house"]
        lists = [[0, 3], [7]]
        matrix = lil_array((2, 48))
        matrix[0, [0, 3]], matrix[1, 7] = 1, 1
        assert model.evaluate(texts, matrix) == model.evaluate(texts, lists)

    def test_a_text_is_no_new_names(self, model):
        with pytest.raises(ValueError, match="expected new texts by uid, got the text 'l1'"):
            rename_labels(model, "l1")


def test_numbers_that_are_rows_and_uids_are_refused():
    uids = ["1", "0", "2", "x"]
    assert rows_of([["1"], [2], [3]], uids) == [[0], [2], [3]]
    with pytest.raises(ValueError, match="query 1: label 1: row 1 has the uid '0', and '1' is the uid of row 0: name"):
        rows_of([[2], [np.int64(1)]], uids)
    assert rows_of([[1, 0, "x"]], uids, numbers_are_uids=True) == [[0, 1, 3]]


def test_a_label_for_each_query_is_no_list():
    with pytest.raises(ValueError, match=r"query 0: expected a list of labels, got 3: write \[label\]"):
        rows_of([3, 5], ["a", "b"])


@pytest.mark.parametrize(
    "positives", [[np.array([1, 0])], [torch.tensor([1, 0])], [(np.int64(1), 0)], [{0: "a", 1: "b"}]]
)
def test_lists_of_labels_in_other_forms(positives):
    assert [sorted(row) for row in rows_of(positives, ["a", "b", "c"])] == [[0, 1]]


@pytest.mark.parametrize(
    ("positives", "said"),
    [
        ({"q": [0]}, "expected a list of the labels of each query, got a dict"),
        ([torch.tensor(1)], r"query 0: expected a list of labels, got 1: write \[label\]"),
        (coo_array(np.array([1, 0, 0])), r"for each of the 3 labels, got the shape \(3,\)"),
    ],
)
def test_what_are_no_lists_of_labels(positives, said):
    with pytest.raises(ValueError, match=said):
        rows_of(positives, ["a", "b", "c"])


def test_zeros_of_a_matrix_are_no_labels():
    matrix = csr_matrix(([1.0, 0.0, 2.0], ([0, 0, 2], [1, 2, 0])), shape=(3, 3))
    assert rows_of(matrix, ["a", "b", "c"]) == [[1], [], [0]]
    assert matrix.nnz == 3
    assert rows_of(csr_matrix((0, 3)), ["a", "b", "c"]) == []


def test_uids_of_several_labels_are_refused():
    assert rows_of([["b"], [0]], ["a", "b", "a"]) == [[1], [0]]
    with pytest.raises(ValueError, match="query 0: 'a': several labels have this uid"):
        rows_of([["a"]], ["a", "b", "a"])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("soup", ("soup", "soup")),
        (("l1", "soup"), ("l1", "soup")),
        ({"uid": 7, "text": "soup"}, ("7", "soup")),
        ((np.int64(7), "soup"), ("7", "soup")),
        ({"uid": "l1", "title": "soup"}, ("l1", "soup")),
        ({"text": "soup"}, ("soup", "soup")),
    ],
)
def test_labels_in_several_forms(label, expected):
    assert as_label(label) == expected


@pytest.mark.parametrize("label", [7, ("a",), ("a", None), {"uid": "a"}, {"uid": True, "text": "a"}, None])
def test_what_is_no_label(label):
    with pytest.raises(ValueError, match="expected a label as a text"):
        as_label(label)


def test_results_of_the_training(model):
    assert model.metrics == {}
    Path(model.folder, "metrics.json").write_text('{"test/P@1": 0.5}')
    assert model.metrics == {"test/P@1": 0.5}
