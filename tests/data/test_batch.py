import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device

from prime_xmc.data.batch import BatchBuilder, Relations, SameBatches, TextChunks, membership, pack, places_of
from prime_xmc.data.corpus import Ragged, Split
from prime_xmc.data.sampling import draw_positives

NUM_LABELS = 9
label_sets = st.sets(st.integers(0, NUM_LABELS - 1)).map(sorted)
seeds = st.integers(0, 2**32 - 1)


def ragged(rows):
    return Ragged.from_rows(rows, dtype=np.int32)


def make_texts(num_texts, start):
    """Text i has 1 + i % 4 tokens, which are told apart by their values."""
    return ragged([[start + 10 * row + place for place in range(1 + row % 4)] for row in range(num_texts)])


def make_builder(positives, filtered=None, *, loss_positives="all", **more):
    filtered = [[]] * len(positives) if filtered is None else filtered
    queries = Split(make_texts(len(positives), 1000), ragged(positives), ragged(filtered))
    return BatchBuilder(queries, make_texts(NUM_LABELS, 5000), loss_positives=loss_positives, **more)


def build(builder, query_ids, drawn):
    return builder[np.array(query_ids, dtype=np.int64), np.array(drawn, dtype=np.int64)]


@st.composite
def data_sets(draw):
    """Positives and filtered labels of each query."""
    positives = draw(st.lists(label_sets, min_size=1, max_size=6))
    return positives, [draw(label_sets) for _ in positives]


def some_batch(positives, seed):
    """What the sampler might yield: some of the queries, and up to three labels drawn for each."""
    rng = np.random.default_rng(seed)
    query_ids = rng.permutation(len(positives))[: rng.integers(1, len(positives) + 1)]
    return query_ids, draw_positives(ragged(positives), np.ones(NUM_LABELS), query_ids, int(rng.integers(1, 4)), rng)


class TestMembership:
    @given(st.lists(label_sets, max_size=6), label_sets)
    def test_all_entries_among_the_labels(self, rows, label_ids):
        row, column = membership(ragged(rows), np.array(label_ids, dtype=np.int64))
        expected = [
            (r, label_ids.index(label)) for r, labels in enumerate(rows) for label in labels if label in label_ids
        ]
        assert list(zip(row.tolist(), column.tolist(), strict=True)) == expected

    @given(st.lists(label_sets, max_size=6), label_sets, st.integers(0, 3))
    def test_places_are_those_of_the_matrix(self, rows, label_ids, first):
        width = first + len(label_ids) + 1
        places = places_of(ragged([row[::-1] for row in rows]), np.array(label_ids, dtype=np.int64), width, first)
        matrix = np.zeros((len(rows), width), dtype=bool)
        for row, labels in enumerate(rows):
            matrix[row, [first + label_ids.index(label) for label in labels if label in label_ids]] = True
        assert places.tolist() == np.flatnonzero(matrix).tolist()


class TestRelations:
    def test_matrices_and_pairs(self):
        relations = Relations(2, 3, torch.tensor([2, 3]), torch.tensor([1, 2, 3]))
        assert relations.positives().tolist() == [[False, False, True], [True, False, False]]
        assert relations.negatives().tolist() == [[True, False, False], [False, True, True]]
        assert [part.tolist() for part in relations.pairs()] == [[0, 1], [2, 0]]

    def test_without_candidates(self):
        none = torch.empty(0, dtype=torch.int64)
        relations = Relations(2, 0, none, none)
        assert relations.positives().shape == relations.negatives().shape == (2, 0)
        assert [len(part) for part in relations.pairs()] == [0, 0]


class TestBatchBuilder:
    @given(data_sets(), seeds, st.sampled_from(["drawn", "any", "all"]))
    @settings(deadline=None)
    def test_masks_are_those_of_plain_loops(self, data, seed, loss_positives):
        positives, filtered = data
        query_ids, drawn = some_batch(positives, seed)
        batch = build(make_builder(positives, filtered, loss_positives=loss_positives), query_ids, drawn)
        label_ids = batch.label_ids.tolist()
        assert label_ids == sorted({label for row in drawn.tolist() for label in row if label != -1})
        for row, query in enumerate(query_ids):
            answers = set(positives[query]) - set(filtered[query])
            positive = {label_ids[column] for column in batch.positives[row].nonzero().flatten()}
            negative = {label_ids[column] for column in batch.negatives[row].nonzero().flatten()}
            # no positive of the query, pulled or not, is ever pushed away, nor is its own label
            assert negative == set(label_ids) - set(positives[query]) - set(filtered[query])
            if loss_positives == "all":
                assert positive == answers & set(label_ids)
            elif loss_positives == "drawn":
                assert positive == answers & set(drawn[row].tolist())
            else:
                assert positive <= answers
                assert len(positive) == min(1, len(answers & set(label_ids)))

    @given(data_sets(), seeds)
    @settings(deadline=None)
    def test_pairs_are_all_of_the_training_data(self, data, seed):
        positives, filtered = data
        query_ids, drawn = some_batch(positives, seed)
        batch = build(make_builder(positives, filtered), query_ids, drawn)
        pairs = list(zip(batch.pair_rows.tolist(), batch.pair_labels.tolist(), strict=True))
        assert pairs == [(row, label) for row, query in enumerate(query_ids) for label in positives[query]]

    @given(data_sets(), seeds)
    @settings(deadline=None)
    def test_texts_are_those_of_the_queries_then_of_the_labels(self, data, seed):
        positives, filtered = data
        query_ids, drawn = some_batch(positives, seed)
        builder = make_builder(positives, filtered)
        batch = build(builder, query_ids, drawn)
        texts = [part.tolist() for part in batch.token_ids.split(batch.lengths.tolist())]
        expected = [builder.queries.tokens[query].tolist() for query in query_ids]
        expected += [builder.label_tokens[label].tolist() for label in batch.label_ids]
        assert texts == expected
        assert batch.query_ids.tolist() == query_ids.tolist()

    def test_which_positives_are_pulled(self):
        """Query 0 drew label 1; its label 4 is in the batch because query 1 drew it, its label 6 is not."""
        positives, query_ids, drawn = [[1, 4, 6], [4], [2]], [0, 1, 2], [[1], [4], [2]]
        expected = {"drawn": {(1,)}, "any": {(1,), (4,)}, "all": {(1, 4)}}
        for loss_positives, possible in expected.items():
            batch = build(make_builder(positives, loss_positives=loss_positives), query_ids, drawn)
            assert batch.label_ids.tolist() == [1, 2, 4]
            assert tuple(batch.label_ids[batch.positives[0]].tolist()) in possible
            assert batch.label_ids[batch.negatives[0]].tolist() == [2]
            assert batch.label_ids[batch.positives[1:].any(dim=0)].tolist() == [2, 4]

    def test_any_is_a_function_of_the_batch(self):
        positives = [[0, 1, 2, 3]] * 40
        query_ids, drawn = np.arange(40), np.arange(40)[:, None] % 4
        first, second = (build(make_builder(positives, loss_positives="any"), query_ids, drawn) for _ in range(2))
        assert torch.equal(first.positives, second.positives)
        other = build(make_builder(positives, loss_positives="any"), query_ids[::-1], drawn[::-1])
        assert not torch.equal(other.positives.flip(0), first.positives)

    def test_any_takes_each_positive_about_equally_often(self):
        """Also where another query's draw favours one; each of 4 within 4 sigma of a quarter of 2000."""
        positives = [[0, 1, 2, 3]] * 2000
        drawn = np.zeros((2000, 1), dtype=np.int64)
        drawn[:3, 0] = [1, 2, 3]
        counts = build(make_builder(positives, loss_positives="any"), np.arange(2000), drawn).positives.sum(dim=0)
        assert ((counts - 500).abs() < 4 * (2000 * 0.25 * 0.75) ** 0.5).all()

    def test_any_does_not_waste_its_choice_on_the_own_label(self):
        positives, filtered = [[0, 1]] * 50, [[0]] * 50
        drawn = np.tile(np.arange(2), (50, 1))
        batch = build(make_builder(positives, filtered, loss_positives="any"), np.arange(50), drawn)
        assert batch.positives.tolist() == [[False, True]] * 50
        assert not batch.negatives.any()

    def test_own_label_is_neither(self):
        """Query 0 is label 3: it is not pushed from it, and though the data list it, not pulled to it."""
        for loss_positives in ("drawn", "any", "all"):
            builder = make_builder([[3, 5], [7]], [[3], []], loss_positives=loss_positives)
            batch = build(builder, [0, 1], [[3, 5], [7, -1]])
            assert batch.label_ids.tolist() == [3, 5, 7]
            assert batch.positives.tolist() == [[False, True, False], [False, False, True]]
            assert batch.negatives.tolist() == [[False, False, True], [True, True, False]]

    def test_works_from_a_loader(self):
        builder = make_builder([[1, 2], [2]])
        item = (np.array([1, 0]), np.array([[2], [1]]))
        (batch,) = torch.utils.data.DataLoader(builder, sampler=[item], batch_size=None)
        assert batch.positives.tolist() == [[False, True], [True, True]]
        assert batch.token_ids.dtype == batch.lengths.dtype == batch.pair_labels.dtype == torch.int64

    def test_text_ids_are_queries_then_labels_behind_all_queries(self):
        batch = build(make_builder([[1, 4], [4], [2]]), [2, 0], [[2], [4]])
        assert batch.text_ids.tolist() == [2, 0, 3 + 2, 3 + 4]

    @given(data_sets(), seeds)
    @settings(deadline=None)
    def test_moved_labels_are_those_of_the_pairs(self, data, seed):
        positives, filtered = data
        query_ids, drawn = some_batch(positives, seed)
        batch = build(make_builder(positives, filtered), query_ids, drawn)
        assert batch.moved_ids.tolist() == sorted({label for query in query_ids for label in positives[query]})

    def test_the_trainer_moves_all_but_what_the_host_goes_by(self):
        queries_of_label = Ragged.grouped(np.array([1, 4, 4, 2]), np.array([0, 0, 1, 2]), NUM_LABELS)
        builder = make_builder([[1, 4], [4], [2, 3]], num_more=2, queries_of_label=queries_of_label, memory_labels=4)
        moved = move_data_to_device(build(builder, [2, 0], [[2], [4]]), torch.device("meta"))
        host = {moved.text_ids, moved.lengths, moved.more.texts.ids, moved.more.texts.lengths}
        assert {tensor.device.type for tensor in host} == {"cpu"}
        parts = (moved, moved.relations, moved.more, moved.more.texts, moved.memory, moved.memory.relations)
        rest = [value for part in parts for value in part if isinstance(value, torch.Tensor) and value not in host]
        assert len(rest) == 14
        assert {tensor.device.type for tensor in rest} == {"meta"}

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_a_gpu_the_host_keeps_what_it_goes_by(self):
        """And what is on the device is what was built."""
        queries_of_label = Ragged.grouped(np.array([1, 4, 4, 2]), np.array([0, 0, 1, 2]), NUM_LABELS)
        builder = make_builder([[1, 4], [4], [2, 3]], num_more=2, queries_of_label=queries_of_label, memory_labels=4)
        built = build(builder, [2, 0], [[2], [4]])
        pinned = built.pin_memory()
        assert pinned.token_ids.is_pinned()
        assert pinned.more.texts.token_ids.is_pinned()
        moved = pinned.to(torch.device("cuda"))
        assert {moved.text_ids.device.type, moved.lengths.device.type, moved.more.texts.ids.device.type} == {"cpu"}
        for name in ("query_ids", "label_ids", "token_ids", "moved_ids", "pair_rows", "pair_places", "positives"):
            assert getattr(moved, name).is_cuda
            assert torch.equal(getattr(moved, name).cpu(), getattr(built, name)), name
        assert torch.equal(moved.memory.relations.negatives().cpu(), built.memory.relations.negatives())
        assert torch.equal(moved.more.pair_places.cpu(), built.more.pair_places)


class TestMoreQueries:
    @given(data_sets(), seeds, st.integers(1, 3))
    @settings(deadline=None)
    def test_drawn_for_each_label_among_its_queries_beside_the_batch(self, data, seed, num_more):
        positives, _ = data
        query_ids, drawn = some_batch(positives, seed)
        allowed = [query for query in range(len(positives)) if query % 3]  # the others are held out
        pairs = np.array([(label, query) for query in allowed for label in positives[query]], dtype=np.int64)
        queries_of_label = Ragged.grouped(*pairs.reshape(-1, 2).T, NUM_LABELS)
        builder = make_builder(positives, num_more=num_more, queries_of_label=queries_of_label)
        batch, again = (build(builder, query_ids, drawn) for _ in range(2))
        torch.testing.assert_close(batch, again, rtol=0, atol=0)
        texts, rows, places = batch.more
        label_ids = batch.moved_ids[places]
        more = list(zip(texts.ids[rows].tolist(), label_ids.tolist(), strict=True))
        assert len(set(more)) == len(more)
        assert set(texts.ids.tolist()) == {query for query, _ in more} <= set(allowed) - set(query_ids.tolist())
        for label in batch.label_ids.tolist():
            having = {query for query in allowed if label in positives[query]}
            found = {query for query, other in more if other == label}
            assert found <= having
            # those of the batch may be drawn, and are not added
            assert len(found) >= min(num_more, len(having)) - len(having & set(query_ids.tolist()))
        assert torch.equal(texts.token_ids, pack(builder.queries.tokens, texts.ids.numpy()).token_ids)

    def test_none_is_the_default(self):
        assert build(make_builder([[0]]), [0], [[0]]).more is None


class TestMemoryLabels:
    @given(data_sets(), seeds)
    def test_the_positives_that_were_not_drawn_with_their_masks(self, data, seed):
        positives, filtered = data
        query_ids, drawn = some_batch(positives, seed)
        batch = build(make_builder(positives, filtered, memory_labels=NUM_LABELS), query_ids, drawn)
        of_batch = [positives[query] for query in query_ids]
        expected = sorted(set().union(*of_batch) - set(batch.label_ids.tolist()))
        assert batch.memory.ids.tolist() == expected
        pulled, pushed = batch.memory.relations.positives(), batch.memory.relations.negatives()
        width = len(batch.label_ids)
        assert torch.equal(pulled[:, :width], batch.positives)
        assert torch.equal(pushed[:, :width], batch.negatives)
        for row, query in enumerate(query_ids):
            for column, label in enumerate(expected, start=width):
                excluded = label in filtered[query]
                related = label in positives[query]
                assert bool(pulled[row, column]) == (related and not excluded)
                assert bool(pushed[row, column]) == (not related and not excluded)

    def test_of_more_labels_a_part_which_is_a_function_of_the_batch(self):
        builder = make_builder([[0, 1, 2, 3, 4, 5, 6]], memory_labels=3)
        ids = [build(builder, [0], [[6]]).memory.ids.tolist() for _ in range(2)]
        assert ids[0] == ids[1] == sorted(ids[0])
        assert len(ids[0]) == 3
        assert set(ids[0]) < {0, 1, 2, 3, 4, 5}

    def test_none_is_the_default(self):
        assert build(make_builder([[0, 1]]), [0], [[1]]).memory is None

    @pytest.mark.parametrize("loss_positives", ["drawn", "any"])
    def test_positives_that_the_loss_leaves_out_are_not_remembered(self, loss_positives):
        builder = make_builder([[0, 1]], loss_positives=loss_positives, memory_labels=4)
        assert build(builder, [0], [[1]]).memory is None

    def test_a_negative_number_is_refused(self):
        with pytest.raises(ValueError, match="memory_labels of at least 0, got -1"):
            make_builder([[0]], memory_labels=-1)


class TestLeftOut:
    def test_all_positives_whose_label_has_another_query(self):
        frequency = np.array([1, 2, 3, 1, 0, 0, 0, 0, 0])
        builder = make_builder(
            [[0, 1, 2], [1, 2], [2, 3]], memory_labels=NUM_LABELS, leave_one_out=1.0, label_frequency=frequency
        )
        batch = build(builder, [2, 0], [[3], [1]])
        ids = torch.cat([batch.label_ids, batch.memory.ids])
        rows, columns, num_queries = batch.left_out
        found = list(zip(batch.query_ids[rows].tolist(), ids[columns].tolist(), num_queries.tolist(), strict=True))
        assert sorted(found) == [(0, 1, 2), (0, 2, 3), (2, 2, 3)]

    def test_a_part_of_them_which_is_a_function_of_the_batch(self):
        frequency = np.full(NUM_LABELS, 5)
        builder = make_builder([list(range(NUM_LABELS))] * 40, leave_one_out=0.25, label_frequency=frequency)
        drawn = [[label % NUM_LABELS] for label in range(40)]
        batches = [build(builder, range(40), drawn) for _ in range(2)]
        assert torch.equal(batches[0].left_out.rows, batches[1].left_out.rows)
        assert torch.equal(batches[0].left_out.columns, batches[1].left_out.columns)
        assert 0.15 < len(batches[0].left_out.rows) / (40 * NUM_LABELS) < 0.35
        assert batches[0].positives[batches[0].left_out.rows, batches[0].left_out.columns].all()

    def test_none_is_the_default(self):
        assert build(make_builder([[0, 1]]), [0], [[1]]).left_out is None

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_what_is_no_probability_is_refused(self, share):
        with pytest.raises(ValueError, match=f"sampling.leave_one_out between 0 and 1, got {share}"):
            make_builder([[0]], leave_one_out=share)


class TestWithoutCentroid:
    def test_a_part_of_all_candidates_which_is_a_function_of_the_batch(self):
        builder = make_builder([list(range(NUM_LABELS))] * 40, memory_labels=NUM_LABELS, without_centroid=0.5)
        batches = [build(builder, range(start, start + 20), [[3], [5]] * 10) for start in (0, 0, 20)]
        found = [batch.without_centroid.tolist() for batch in batches]
        assert found[0] == found[1] != found[2]
        assert all(0 < len(columns) < NUM_LABELS and max(columns) < NUM_LABELS for columns in found)

    def test_no_query_is_left_out_of_a_centroid_that_is_not_shown(self):
        builder = make_builder(
            [list(range(NUM_LABELS))] * 4,
            memory_labels=NUM_LABELS,
            without_centroid=0.5,
            leave_one_out=1.0,
            label_frequency=np.full(NUM_LABELS, 4),
        )
        batch = build(builder, range(4), [[0]] * 4)
        shown = set(range(NUM_LABELS)) - set(batch.without_centroid.tolist())
        assert set(batch.left_out.columns.tolist()) == shown
        assert len(batch.left_out.rows) == 4 * len(shown)

    def test_all_are_shown_with_theirs_by_default(self):
        assert build(make_builder([[0, 1]]), [0], [[1]]).without_centroid is None

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_what_is_no_probability_is_refused(self, share):
        with pytest.raises(ValueError, match=f"sampling.without_centroid between 0 and 1, got {share}"):
            make_builder([[0]], without_centroid=share)


class TestTexts:
    def test_pack(self):
        texts = pack(make_texts(6, 100), np.array([5, 0, 5]))
        assert texts.ids.tolist() == [5, 0, 5]
        assert texts.token_ids.tolist() == [150, 151, 100, 150, 151]
        assert texts.lengths.tolist() == [2, 1, 2]
        assert texts.token_ids.dtype == torch.int64

    @pytest.mark.parametrize("chunk_size", [1, 3, 4, 100])
    def test_chunks_hold_each_text_once(self, chunk_size):
        tokens, ids = make_texts(20, 100), np.array([19, 3, 4, 0, 7, 12, 13, 6])
        chunks = list(TextChunks(tokens, ids, chunk_size))
        assert len(chunks) == len(TextChunks(tokens, ids, chunk_size)) == -(-len(ids) // chunk_size)
        assert sorted(torch.cat([chunk.ids for chunk in chunks]).tolist()) == sorted(ids)
        lengths = torch.cat([chunk.lengths for chunk in chunks])
        assert (lengths.diff() >= 0).all()
        for chunk in chunks:
            for row, part in zip(chunk.ids, chunk.token_ids.split(chunk.lengths.tolist()), strict=True):
                assert part.tolist() == tokens[row].tolist()

    def test_no_text(self):
        assert list(TextChunks(make_texts(3, 100), np.empty(0, dtype=np.int64), 4)) == []


def test_the_same_batches_are_those_of_the_items_by_number():
    builder = make_builder([[0, 1], [2], [3]])
    items = [(np.array([0, 2]), np.array([[1], [3]])), (np.array([1]), np.array([[2]]))]
    batches = SameBatches(builder, items)
    assert len(batches) == 2
    assert batches[0].query_ids.tolist() == [0, 2]
    assert batches[1].label_ids.tolist() == [2]


class TestNegatives:
    """Two queries; labels 0 to 8."""

    POSITIVES = ((1, 2), (5,))

    def build(self, mined=None, filtered=None, **settings):
        builder = make_builder(self.POSITIVES, filtered, loss_positives="drawn", **settings)
        item = [[0, 1], [[1], [5]], *([] if mined is None else [mined])]
        return builder[tuple(np.array(each, dtype=np.int64) for each in item)]

    def test_mined_labels_join_the_batch(self):
        batch = self.build(mined=[[2, 8], [-1, 7]])
        assert batch.label_ids.tolist() == [1, 2, 5, 7, 8]
        assert batch.positives.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
        # 2 is a positive of the first query that was not drawn
        assert batch.negatives.int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 1, 1]]
        assert len(batch.lengths) == 2 + 5

    def test_mined_labels_alone_are_negatives(self):
        batch = self.build(mined=[[2, 8], [-1, 7]], mined_alone=True)
        assert batch.positives.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
        assert batch.negatives.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]

    def test_before_the_first_search_the_batch_has_the_negatives(self):
        batch = self.build(mined_alone=True)
        assert batch.negatives.int().tolist() == [[0, 1], [1, 0]]

    def test_positives_that_were_not_drawn_are_pushed_where_nothing_masks_them(self):
        masked, pushed = (self.build(mined=[[2], [2]], mask_positives=each) for each in (True, False))
        assert masked.label_ids.tolist() == [1, 2, 5]
        assert masked.negatives.int().tolist() == [[0, 0, 1], [1, 1, 0]]
        assert pushed.negatives.int().tolist() == [[0, 1, 1], [1, 1, 0]]
        assert torch.equal(pushed.positives, masked.positives)

    def test_what_a_filter_excludes_is_never_pushed(self):
        batch = self.build(mined=[[2], [8]], filtered=[[5], [8]], mask_positives=False)
        assert batch.negatives.int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]

    def test_all_labels_there_are(self):
        batch = self.build(batch_labels="all")
        assert batch.label_ids.tolist() == list(range(NUM_LABELS))
        assert batch.positives.nonzero().tolist() == [[0, 1], [1, 5]]
        assert (~batch.negatives).nonzero().tolist() == [[0, 1], [0, 2], [1, 5]]


class TestLabelRows:
    """Queries 0 to 2, whose positives are [1, 4], [4] and [7], with rows 3 + l for labels l."""

    POSITIVES, FILTERED = ([1, 4], [4], [7]), ([], [7], [])

    def build(self, query_ids, drawn, **more):
        return build(make_builder(self.POSITIVES, self.FILTERED, **more), query_ids, drawn)

    def test_they_have_the_text_of_the_label_and_it_alone_as_a_positive(self):
        batch = self.build([1, 0, 3 + 7, 3 + 2], [[4], [1], [7], [2]])
        assert batch.num_label_rows == 2
        assert batch.query_ids.tolist() == [1, 0, 10, 5]
        assert batch.label_ids.tolist() == [1, 2, 4, 7]
        assert batch.text_ids.tolist() == [1, 0, 10, 5, 4, 5, 7, 10]  # of a label row as of the label's text
        texts = [text.tolist() for text in batch.token_ids.split(batch.lengths.tolist())]
        labels = make_texts(NUM_LABELS, 5000)
        assert texts[2:] == [labels[label].tolist() for label in (7, 2, 1, 2, 4, 7)]
        assert batch.positives.int().tolist() == [[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
        assert batch.negatives.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0], [1, 0, 1, 1]]

    def test_no_centroid_moves_for_them(self):
        with_rows, without = self.build([0, 2, 3 + 2], [[1], [7], [2]]), self.build([0, 2], [[1], [7]])
        for name in ("moved_ids", "pair_rows", "pair_places"):
            assert torch.equal(getattr(with_rows, name), getattr(without, name)), name
        assert (without.num_label_rows, with_rows.moved_ids.tolist()) == (0, [1, 4, 7])

    def test_they_are_left_out_of_no_centroid(self):
        frequency = np.full(NUM_LABELS, 2)
        batch = self.build([0, 3 + 4], [[4], [4]], leave_one_out=1.0, label_frequency=frequency)
        assert batch.left_out.rows.tolist() == [0]

    def test_no_query_is_drawn_for_a_label_that_no_query_of_the_batch_has(self):
        queries_of_label = Ragged.grouped(np.array([1, 4, 4, 7]), np.array([0, 0, 1, 2]), NUM_LABELS)
        batch = self.build([0, 3 + 7], [[4], [7]], num_more=2, queries_of_label=queries_of_label)
        assert batch.more.texts.ids.tolist() == [1]  # of label 4; none of label 7, which would be query 2
        assert batch.moved_ids[batch.more.pair_places].tolist() == [4]

    def test_remembered_labels_are_those_of_queries(self):
        batch = self.build([0, 3 + 2], [[1], [2]], memory_labels=5)
        assert batch.memory.ids.tolist() == [4]
        assert batch.memory.relations.positives().int().tolist() == [[1, 0, 1], [0, 1, 0]]


def test_a_batch_without_labels_has_all_pairs_of_its_queries():
    batch = build(make_builder([[1, 4], [4]]), [1, 0], np.empty((2, 0)))
    assert batch.label_ids.tolist() == []
    assert len(batch.lengths) == len(batch.text_ids) == 2
    assert (batch.pair_rows.tolist(), batch.pair_labels.tolist()) == ([0, 1, 1], [4, 1, 4])
    assert batch.positives.shape == (2, 0)
