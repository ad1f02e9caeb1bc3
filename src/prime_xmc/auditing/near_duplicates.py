"""Texts that share most of their words, found by MinHash signatures and bands of them.

Source: Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3.
"""

import re
import zlib
from array import array

import numpy as np
from jaxtyping import Int64, UInt64

RESEMBLANCE = 0.8  # Jaccard similarity of the sets of words from which on texts are nearly the same
_BANDS, _ROWS = 8, 4  # a pair at 0.8 is found with a probability of 98 %, one at 0.5 is looked at with 40 %
_WORD = re.compile(r"\w+")
_NO_BLANKS = re.compile(r"[\u0e00-\u0e7f\u2e80-\u9fff\uf900-\ufaff]")  # scripts without blanks between words
_NONE = np.zeros((0, 2), dtype=np.int64)


class WordSets:
    """The set of words of each of some texts, as numbers."""

    def __init__(self) -> None:
        self._words, self._ends = array("I"), array("q", [0])

    def add(self, text: str) -> None:
        """Add a text; case and punctuation do not count, and scripts without blanks go by pairs of characters."""
        words = set(_WORD.findall(text.casefold()))
        for word in [word for word in words if _NO_BLANKS.search(word)]:
            words |= {word[place : place + 2] for place in range(len(word) - 1)}
        self._words.extend(sorted(zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words))
        self._ends.append(len(self._words))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def words(self, row: int) -> frozenset[int]:
        """Return the words of a text."""
        return frozenset(self._words[self._ends[row] : self._ends[row + 1]])

    def band_keys(self) -> UInt64[np.ndarray, "text band"]:
        """Return a number for each band of the signature of each text; texts without words have none in common."""
        words = np.frombuffer(self._words, dtype=np.uint32).astype(np.uint64)
        ends = np.frombuffer(self._ends, dtype=np.int64)
        filled = np.flatnonzero(np.diff(ends))
        rng = np.random.default_rng(0)
        keys = np.zeros((len(self), _BANDS), dtype=np.uint64)
        if not len(filled):
            return keys
        starts = ends[filled]
        for band in range(_BANDS):
            key = np.zeros(len(filled), dtype=np.uint64)
            for _ in range(_ROWS):
                factor, term = rng.integers(1, 2**63, 2, dtype=np.uint64)
                mixed = (words * (factor | np.uint64(1)) + term) >> np.uint64(20)
                key = key * np.uint64(0x9E3779B97F4A7C15) + np.minimum.reduceat(mixed, starts)
            keys[filled, band] = key | np.uint64(1)  # not 0, which texts without words have
        return keys


def within(sets: WordSets, texts: Int64[np.ndarray, " text"]) -> Int64[np.ndarray, "pair 2"]:
    """Return (text, earlier text) for texts that nearly repeat an earlier one but are not the same.

    Args:
        sets: Words of the texts.
        texts: A hash of each text.

    Returns:
        At most one pair for each text, by ascending text.
    """
    return _pairs(sets, sets, texts, texts)


def across(
    sets: WordSets,
    texts: Int64[np.ndarray, " text"],
    others: WordSets,
    other_texts: Int64[np.ndarray, " other"],
) -> Int64[np.ndarray, "pair 2"]:
    """Return (text, other text) for texts that are nearly the same as one of the others, without being the same."""
    return _pairs(sets, others, texts, other_texts)


def _pairs(sets: WordSets, others: WordSets, texts: np.ndarray, other_texts: np.ndarray) -> Int64[np.ndarray, "pair 2"]:
    same = sets is others
    keys = sets.band_keys()
    other_keys = keys if same else others.band_keys()
    found = []
    for band in range(_BANDS):
        # of the others with a key, the first one, and within a file also the one just before
        order = np.argsort(other_keys[:, band], kind="stable")
        ordered = other_keys[order, band]
        for side in ("left", "right") if not same else ("left", "before"):
            if side == "before":
                rows, partners = order[1:], order[:-1]
                fits = ordered[1:] == ordered[:-1]
            else:
                places = np.searchsorted(ordered, keys[:, band], side="left" if side == "left" else "right")
                places = np.clip(places - (side == "right"), 0, max(len(order) - 1, 0))
                if not len(order):
                    continue
                rows, partners = np.arange(len(keys)), order[places]
                fits = ordered[places] == keys[:, band]
            fits &= keys[rows, band] != 0
            if same:
                fits &= partners < rows
            fits &= texts[rows] != other_texts[partners]
            found.append(np.stack([rows[fits], partners[fits]], axis=1))
    candidates = np.unique(np.concatenate([_NONE, *found]), axis=0)
    confirmed: dict[int, int] = {}
    for row, partner in candidates.tolist():
        if row not in confirmed:
            words, partner_words = sets.words(row), others.words(partner)
            shared = len(words & partner_words)
            if shared >= RESEMBLANCE * (len(words) + len(partner_words) - shared):
                confirmed[row] = partner
    return np.array(list(confirmed.items()), dtype=np.int64).reshape(-1, 2)
