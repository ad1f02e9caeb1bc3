import time

import numpy as np

from prime_xmc.baselines.method import Stopwatch, rank_here, top_labels


def test_top_labels_are_the_best_of_all_with_ties_by_id():
    scores = np.array([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]], dtype=np.float32)
    ids, top = top_labels(scores, 2)
    assert ids.tolist() == [[1, 2], [0, 1], [0, 1]]
    assert top.tolist() == [[3, 3], [0, 0], [5, 4]]


def test_top_labels_agree_with_a_complete_sort():
    scores = np.random.default_rng(0).integers(0, 6, size=(50, 40)).astype(np.float32)
    ids, _ = top_labels(scores, 7)
    assert (ids == np.argsort(-scores, axis=1, kind="stable")[:, :7]).all()


def test_labels_without_a_score_are_padding_and_so_are_those_that_do_not_exist():
    ids, top = top_labels(np.array([[-np.inf, 2.0]]), 3)
    assert ids.tolist() == [[1, -1, -1]]
    assert top.tolist() == [[2, -np.inf, -np.inf]]


def test_label_texts_become_queries_with_their_own_label(words):
    more = words.with_label_texts()
    assert len(more.queries) == len(more.positives) == 130
    assert more.queries.strings[120:] == words.labels.strings
    assert more.positives[129].tolist() == [9]
    assert more.queries.tokens[129].tolist() == [9]
    assert (more.positives.values[: len(words.positives.values)] == words.positives.values).all()


def test_texts_are_taken_with_their_tokens(words):
    some = words.queries.take(np.array([5, 2]))
    assert some.strings == [words.queries.strings[5], words.queries.strings[2]]
    assert some.tokens[1].tolist() == words.queries.tokens[2].tolist()


def test_stopwatch_adds_the_clock_and_the_processors():
    watch = Stopwatch()
    with watch.running():
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 5
    before = watch.cpu_seconds
    with watch.running():
        sum(range(1_000_000))
    assert before < 0.05 < watch.seconds
    assert watch.cpu_seconds > before


class Fixed:
    model_bytes = 17

    def scores(self, queries):
        return np.array([[len(text) % 3, 1, 0] for text in queries.strings], dtype=np.float32)


def test_ranking_in_this_process_keeps_names_and_measures(words, asked):
    outcome = rank_here(Fixed, {"val": asked, "test": words.queries}, 3, 2, threads=1)
    ids, _ = outcome.rankings["val"]  # of 9, 9 and 12 letters
    assert ids.tolist() == [[1, 0], [1, 0], [1, 0]]
    assert outcome.rankings["test"][0].shape == (120, 2)
    assert outcome.cost.model_bytes == 17
    assert outcome.cost.peak_rss_bytes > 2**20
    assert outcome.cost.milliseconds_per_query > 0


def test_queries_are_ranked_in_blocks_as_at_once(words, monkeypatch):
    monkeypatch.setattr("prime_xmc.baselines.method.BLOCK_SCORES", 21)  # seven queries
    ((ids, _),) = rank_here(Fixed, {"test": words.queries}, 3, 2, threads=1).rankings.values()
    assert (ids == top_labels(Fixed().scores(words.queries), 2)[0]).all()
