"""The systems that PRIME is compared with: what their configurations change, and that they train."""

import json
import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from prime_xmc.assemble import check_settings, make_data, make_module
from prime_xmc.conf_files import config_dir
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.prototypes_folder import load_prototype_network
from prime_xmc.stages import train_prototypes as run

LOSSES = "prime_xmc.model.losses"
PEER_LOSSES = "prime_xmc.model.peer_losses"
ABSENT = "absent"
TRIPLET = ("gamma_min", "gamma_max", "weighting", "detach_weights", "invert_uncertain")
# What all have in common: a label is its text, one term of the loss, one positive drawn uniformly.
SIAMESE = {
    "model.sources": ["text"],
    "loss.prototype_weight": 0.0,
    "loss.label_weight": 0.0,
    "loss.regulariser_weight": 0.0,
    "sampling.num_positives": 1,
    "sampling.positive_weighting": "uniform",
    "sampling.loss_positives": "drawn",
}
RANDOM = {"sampling.clusters.first_epoch": None, "callbacks.clusters.first_epoch": None}
MINED = RANDOM | {"sampling.mined.first_epoch": 1, "callbacks.mined.first_epoch": 1}
SOFTMAX = {f"loss.{key}": ABSENT for key in TRIPLET} | {"loss.temperature": 0.05, "loss.num_negatives": None}
NGAME = {
    "loss.gamma_min": 0.3,
    "loss.num_negatives": 10,
    "loss.weighting": "ngame",
    "loss.detach_weights": False,
}
CHANGED = {
    "dpr": SIAMESE
    | RANDOM
    | SOFTMAX
    | {"loss.contrast._target_": f"{LOSSES}.InfoNCE", "sampling.mask_positives": False},
    "ance": SIAMESE | MINED | SOFTMAX | {"loss.contrast._target_": f"{LOSSES}.InfoNCE"},
    "siamesexml": SIAMESE
    | RANDOM
    | {f"loss.{key}": ABSENT for key in (*TRIPLET, "temperature")}
    | {
        "loss.contrast._target_": f"{PEER_LOSSES}.KProb",
        "loss.scale": 0.9,
        "loss.slope": 1.5,
        "loss.num_negatives": 1,
        "loss.text_weight": 0.7,
        "loss.two_point_weight": 0.3,
        "sampling.sampler._target_": "prime_xmc.data.sampling.LabelBatchSampler",
        "sampling.sampler.num_queries": 2,
    },
    "ngame": SIAMESE | NGAME,
    "dexa": {key: value for key, value in SIAMESE.items() if key != "loss.prototype_weight"}
    | NGAME
    | {
        "model.sources": ["text", "free_vector"],
        "model.combine": "sum",
        "model.num_private": 1000,
        "model.free_vector_std": 0.15,
        "loss.text_weight": 0.0,
    },
    "dexml": SIAMESE
    | RANDOM
    | SOFTMAX
    | {
        "loss.contrast._target_": f"{LOSSES}.DecoupledSoftmax",
        "sampling.batch_labels": "all",
        "encoder.recompute": True,
    },
    "dexml_mined": SIAMESE
    | MINED
    | SOFTMAX
    | {
        "loss.contrast._target_": f"{LOSSES}.DecoupledSoftmax",
        "sampling.mined.top_k": 100,
        "callbacks.mined.top_k": 100,
    },
    "unidec": {key: value for key, value in SIAMESE.items() if not key.endswith(("prototype_weight", "_positives"))}
    | MINED
    | SOFTMAX
    | {
        "loss.contrast._target_": f"{LOSSES}.DecoupledSoftmax",
        "model.sources": ["free_vector"],
        "model.combine": "sum",
        "model.num_free_vectors": 1,
        "model.num_private": "all",
        "model.free_vector_start": "text",
    },
}
# For 48 labels.
SMALL = {
    "dexa": ["model.num_private=8", "optimizer.lr=5e-4"],
    "siamesexml": ["sampling.batch_size=16"],
    "unidec": ["trainer.max_epochs=12"],  # classifiers follow slowly
}


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_of(compose, option):
    """Of a data set for which PRIME draws two positives."""
    composed = compose(option, "dataset=amazontitles131k", "run_dir=run")
    return dict(flat(OmegaConf.to_container(composed, resolve=True)))


def test_every_peer_is_here():
    options = {path.stem for path in (config_dir() / "model").glob("*.yaml")}
    of_one_vs_all = {"renee", "elmo"}  # see test_one_vs_all_runs.py
    assert options - {"prime", "prime_lite"} - of_one_vs_all == set(CHANGED)


@pytest.mark.parametrize("peer", CHANGED)
def test_a_peer_differs_from_prime_in_what_it_is_and_nothing_else(peer, compose):
    prime, other = settings_of(compose, "experiment=paper"), settings_of(compose, f"model={peer}")
    found = {
        key: other.get(key, ABSENT)
        for key in prime.keys() | other.keys()
        if prime.get(key, ABSENT) != other.get(key, ABSENT)
    }
    assert found == CHANGED[peer]


@pytest.mark.parametrize("peer", CHANGED)
def test_the_head_says_what_it_is_where_it_comes_from_and_how_it_differs(peer):
    head = (config_dir() / "model" / f"{peer}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert " et al. 20" in head
    assert "Not as published" in head or "not known" in head


@pytest.fixture(scope="module")
def small(toy_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    quiet = ["callbacks.progress=null", "logger=null", "trainer.precision=32-true", "optimizer.lr=1e-3"]
    return [*toy_settings, f"cache_dir={folder}", "sampling.batch_size=32", "trainer.max_epochs=6", *quiet]


@pytest.mark.parametrize("peer", CHANGED)
def test_it_trains_and_its_model_predicts(peer, small, compose, tmp_path):
    done = run(compose(f"model={peer}", *small, *SMALL.get(peer, []), f"run_dir={tmp_path}"))
    assert json.loads((tmp_path / "metrics.json").read_text())["test/P@1"] > 3 * 2 / 48  # chance is about 2 in 48
    predictor = Predictor.load(tmp_path / "model")
    answer = predictor.predict(["a picture of red cat"], top_k=3)[0]
    assert len(answer.labels) == 3
    assert all(parameter.isfinite().all() for parameter in done.module.parameters())
    # what the folder holds makes the same prototypes again, as it has to where labels are added
    network, label_emb = load_prototype_network(tmp_path / "model", predictor.config)
    _, prototypes = done.module.build_index()
    torch.testing.assert_close(network(torch.arange(48), label_emb.float()), prototypes, atol=2e-3, rtol=0)


def test_unidec_has_a_classifier_for_each_label(small, compose, tmp_path):
    config = compose("model=unidec", *small, f"run_dir={tmp_path}")
    module = make_module(config, make_data(config))
    assert module.prototypes.free_vectors.shape == (1 + 48, 32)


def test_scores_are_inner_products_where_embeddings_are_not_normalised(small, compose, tmp_path):
    done = run(compose("model=dpr", *small, "encoder.normalize=false", "loss.temperature=1.0", f"run_dir={tmp_path}"))
    predictor = Predictor.load(tmp_path / "model")
    query_emb = predictor.encode(["a picture of red cat"])
    _, vectors = done.module.build_index()
    assert not torch.allclose(query_emb.norm(dim=1), torch.ones(1), atol=0.1)
    scores = [label.score for label in predictor.predict(["a picture of red cat"], top_k=48)[0].labels]
    expected = (query_emb @ vectors.T)[0].sort(descending=True).values.tolist()
    assert scores == pytest.approx(expected, rel=1e-4)
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert [each["type"].rpartition(".")[2] for each in modules] == ["Transformer", "Pooling"]


def test_stages_that_need_unit_vectors_say_so(small, compose, tmp_path):
    more = ["encoder.normalize=false", "neighbours={k: 3, temperature: 0.1}"]
    config = compose("model=dpr", *small, *more, f"run_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"encoder.normalize=false: neighbours need unit vectors"):
        run(config)


POSITIVE, NEGATIVE = (0.8, 0.55), (0.6, 0.4)  # cosines of a query and its positives, and its negatives


def log_sum_exp(*values):
    return math.log(sum(map(math.exp, values)))


def softmax_loss(*, positives_compete):
    """A softmax with the temperature 0.05, in which the positives of a query compete with one another or not."""
    negatives = [20 * cosine for cosine in NEGATIVE]
    candidates = [[*(20 * each for each in (POSITIVE if positives_compete else [p])), *negatives] for p in POSITIVE]
    return sum(log_sum_exp(*each) - 20 * p for p, each in zip(POSITIVE, candidates, strict=True)) / 2


def ngame_loss():
    """Of 0.8, only 0.6 violates the margin of 0.3, by 0.1; of 0.55 both do, by 0.35 and 0.15."""
    first = math.exp(6) / (math.exp(6) + math.exp(0)) * 0.1
    second = (math.exp(6) * 0.35 + math.exp(4) * 0.15) / (math.exp(6) + math.exp(4))
    return (first / 2 + second / 2) / 2


def k_prob_of(positives, negatives):
    pull = sum(-math.log(0.9) + 1.5 * (1 - cosine) for cosine in positives)
    return pull - math.log(1 - 0.9 * math.exp(1.5 * (max(negatives) - 1)))


def siamesexml_loss():
    """Labels are orthogonal but for what they share with the query; the second anchor is between it and a label."""
    centres = []
    for own, other in (POSITIVE, POSITIVE[::-1]):
        length = math.sqrt(2 + 2 * own)
        positives = [(own + 1) / length, (other + own * other) / length]
        centres.append(k_prob_of(positives, [(cosine + own * cosine) / length for cosine in NEGATIVE]))
    return 0.7 * k_prob_of(POSITIVE, NEGATIVE) + 0.3 * sum(centres) / 2


@pytest.mark.parametrize(
    ("peer", "of", "expected"),
    [
        ("dpr", "texts", softmax_loss(positives_compete=True)),
        ("ance", "texts", softmax_loss(positives_compete=True)),
        ("siamesexml", "texts", siamesexml_loss()),
        ("ngame", "texts", ngame_loss()),
        ("dexa", "prototypes", ngame_loss()),
        ("dexml", "texts", softmax_loss(positives_compete=False)),
        ("dexml_mined", "texts", softmax_loss(positives_compete=False)),
        ("unidec", "both", softmax_loss(positives_compete=False)),
    ],
)
def test_the_loss_of_a_configuration_is_that_by_hand(compose, peer, of, expected):
    cosines = torch.tensor([[*POSITIVE, *NEGATIVE]], dtype=torch.float64)
    texts = torch.cat([cosines.T, torch.diag((1 - cosines[0] ** 2).sqrt())], dim=1)  # unit vectors
    query = torch.eye(5, dtype=torch.float64)[:1]
    away = -query.expand(4, 5)  # cosines of -1, which would give another loss
    embeddings = {"texts": (texts, away), "prototypes": (away, texts), "both": (texts, texts)}[of]
    positives = torch.tensor([[True, True, False, False]])
    loss, _ = instantiate(compose(f"model={peer}").loss, _convert_="all")(query, *embeddings, positives, ~positives)
    assert loss.item() == pytest.approx(expected * (2 if of == "both" else 1), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["model=ngame"], r"loss\.gamma_min, loss\.gamma_max would be about cosines"),
        (["model=siamesexml"], r"loss\.scale, loss\.slope would be about cosines"),
        (
            ["model=dpr", "loss.regulariser_weight=0.1"],
            r"loss\.regulariser_margin would be about cosines; take .*loss=infonce",
        ),
    ],
)
def test_losses_with_margins_say_that_they_need_unit_vectors(small, compose, given, named):
    with pytest.raises(ValueError, match=rf"encoder\.normalize=false: {named}"):
        check_settings(compose(*given, *small, "encoder.normalize=false"))


def test_all_labels_are_negatives_by_cached_gradients(tiny_encoder_dir, compose, tmp_path):
    """Chunks that are encoded again with their random numbers give the gradients of one graph of all labels."""
    gradients = []
    for recompute in ("true", "false"):
        config = compose(
            "model=dexml",
            "encoder=local",
            f"encoder.source={tiny_encoder_dir}",
            "dataset=synthetic",
            "dataset.num_labels=300",
            "dataset.num_queries=600",
            "sampling.batch_size=32",
            "trainer.precision=32-true",
            f"cache_dir={tmp_path}",
            f"encoder.recompute={recompute}",
            "encoder.dropout=0.2",
            "encoder.chunk_tokens=64",
            f"run_dir={tmp_path}",
        )
        data = make_data(config)
        module = make_module(config, data)
        batch = next(iter(data.train_dataloader()))
        assert len(batch.label_ids) == 300
        torch.manual_seed(3)
        loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in module.encoder.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 10
    for cached, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(cached, plain)
