"""The toy model opened, a copy of it, and one with all scorers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.ensemble import Ensemble, add_scorers
from prime_xmc.export.lexical_folder import LexicalTables
from prime_xmc.export.neighbours_folder import VotingQueries
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.index.fused import Weights
from prime_xmc.index.lexical import build_postings


@pytest.fixture(scope="session")
def predictor(toy_bundle: Path) -> Predictor:
    return Predictor.load(toy_bundle)


@pytest.fixture
def copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "model"))


@pytest.fixture
def ensemble_model(copy: Path, predictor: Predictor) -> Path:
    """A copy of the model with all scorers, of which two queries vote for labels 0 and 1, and 1 and 2."""
    texts = ["a cat that is red", "a house by the green river"]
    queries, labels = predictor.tokenise(texts), Ragged.from_rows([[0, 1], [1, 2]], dtype=np.int32)
    special_ids = sorted(set(predictor.tokenise([""]).values.tolist()))
    label_tokens = predictor.tokenise([text for _, text in predictor.labels])
    postings = build_postings(queries, labels, label_tokens, special_ids=special_ids, pairs=True)
    add_scorers(
        copy,
        Ensemble(Weights(0.5, 0.5, 0.5, 0.5), 2, 0.1, 40, ["P@1"], {"theta": {"P@1": 0.5}}, True),
        digest=encoder_digest(copy),
        classifiers=normalize(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)), dim=1),
        classifier_settings={"seed": 3},
        voters=VotingQueries(predictor.encode_tokens(queries).half(), labels),
        lexical=LexicalTables(postings, special_ids, True),
        index=None,
    )
    return copy
