import numpy as np
import pytest
import torch

from prime_xmc.baselines.features import Embeddings, TfIdf, labels_matrix, projection, similarities
from prime_xmc.model.encoder import TextEncoder


def test_tfidf_is_that_of_the_formula(words, asked):
    rows = TfIdf(ngrams=(1, 1)).learn(words).rows(asked).toarray()
    texts = [*words.queries.strings, *words.labels.strings]
    terms = sorted({word for text in texts for word in text.split()})
    idf = [np.log((1 + len(texts)) / (1 + sum(term in text.split() for text in texts))) + 1 for term in terms]
    expected = np.array(
        [[weight * (term in text.split()) for term, weight in zip(terms, idf, strict=True)] for text in asked.strings]
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert rows == pytest.approx(expected, abs=1e-6)


def test_terms_follow_the_settings(words):
    assert TfIdf(ngrams=(1, 1)).learn(words).num_terms == 10
    pairs = {text for text in words.queries.strings}
    assert TfIdf(ngrams=(2, 2)).learn(words).num_terms == len(pairs)
    often = sum(words.queries.strings.count(pair) >= 4 for pair in pairs)
    assert TfIdf(ngrams=(2, 2), min_df=4).learn(words).num_terms == often
    assert TfIdf(ngrams=(1, 1), token_pattern=r"[aeiou]").learn(words).num_terms == 5


def test_size_is_that_of_terms_and_weights(words):
    assert TfIdf(ngrams=(1, 1)).learn(words).model_bytes == sum(len(w) + 4 for w in words.labels.strings)


def test_mistaken_settings_are_refused(words):
    with pytest.raises(ValueError, match=r"tfidf\.ngrams of two numbers.*got \[2, 1\]"):
        TfIdf(ngrams=(2, 1))
    with pytest.raises(ValueError, match=r"tfidf\.token_pattern=\[: not a regular expression \(unterminated"):
        TfIdf(token_pattern="[")
    with pytest.raises(ValueError, match=r"tfidf\.token_pattern=\(a\)\(b\): it has 2 groups, and a word is one"):
        TfIdf(token_pattern="(a)(b)")
    with pytest.raises(ValueError, match=r"tfidf\.token_pattern=\\w\*: it matches the empty text"):
        TfIdf(token_pattern=r"\w*")
    with pytest.raises(ValueError, match="tf-idf finds no terms"):
        TfIdf(token_pattern=r"\d").learn(words)


def test_embeddings_are_those_of_the_encoder_in_the_order_of_the_texts(tiny_encoder_dir, words):
    encoder = TextEncoder(str(tiny_encoder_dir))
    features = Embeddings(encoder, device="cpu")
    rows = features.learn(words).rows(words.queries)
    assert rows.shape == (120, 32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    tokens = torch.from_numpy(words.queries.tokens[7])
    with torch.no_grad():
        alone = encoder(tokens, torch.tensor([len(tokens)]))[0].numpy()
    assert rows[7] == pytest.approx(alone, abs=0.03)  # bfloat16 where the processor computes it


def test_similarities_are_inner_products_of_sparse_and_dense_rows(words, asked):
    vectoriser = TfIdf().learn(words)
    a, b = vectoriser.rows(asked), vectoriser.rows(words.queries)
    assert similarities(a, b) == pytest.approx(a.toarray() @ b.toarray().T)
    assert similarities(a.toarray(), b.toarray()) == pytest.approx(similarities(a, b))


def test_projection_keeps_what_the_first_singular_vectors_hold(words):
    rows = TfIdf(ngrams=(1, 1)).learn(words).rows(words.queries)
    few, matrix = projection(rows, 4, seed=0)
    assert few == pytest.approx(rows @ matrix)
    _, values, _ = np.linalg.svd(rows.toarray())
    assert np.linalg.norm(few) ** 2 == pytest.approx((values[:4] ** 2).sum(), rel=0.02)
    assert matrix.T @ matrix == pytest.approx(np.eye(4), abs=1e-5)
    assert projection(rows, 1000, seed=0)[0].shape == (120, 10)


def test_label_matrix_has_a_one_for_each_pair(words):
    matrix = labels_matrix(words)
    assert matrix.shape == (120, 10)
    assert [row.nonzero()[0].tolist() for row in matrix.toarray()] == [words.positives[i].tolist() for i in range(120)]
