"""The exported folder: complete, equal to the model, and usable by a program without this package."""

import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

from prime_xmc.data.corpus import Ragged
from prime_xmc.export.folder import LABELS
from prime_xmc.export.scorers import encoder_digest, labels_digest, save_classifiers
from prime_xmc.interchange import folder_writer
from prime_xmc.interchange.folder_writer import check_output, choose_vectors, export_folder, largest_difference
from prime_xmc.interchange.onnx_encoder import OnnxEncoder


def test_it_has_every_file_and_the_encoder_is_equal(exported, toy_bundle):
    (folder, difference, _), said = exported
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "encoder.onnx", "encoder_int8.onnx", "tokenizer.json", "vectors.npy", "labels.parquet"),
        *("labels.jsonl", "prime_onnx.json"),
    }
    assert difference < 1e-5
    assert "encoder.onnx: embeddings of 53 texts differ from those of torch by at most" in said[0]
    config = json.loads((folder / "prime_onnx.json").read_text())
    assert (config["max_length"], config["num_labels"], config["dim"], config["vectors"]) == (16, 48, 32, "theta")
    assert (folder / LABELS).read_bytes() == (toy_bundle / LABELS).read_bytes()
    inputs = onnxruntime.InferenceSession(folder / "encoder.onnx").get_inputs()
    assert [(each.name, each.shape) for each in inputs] == [
        ("input_ids", ["texts", "tokens"]),
        ("attention_mask", ["texts", "tokens"]),
    ]


def test_texts_of_all_lengths_in_any_number_are_embedded_alike(exported, predictor):
    encoder = OnnxEncoder(exported[0].folder / "encoder.onnx", 1)
    for count in (1, 2, 33, 100):
        tokens = predictor.tokenise([" ".join(["a red cat"] * (row % 7)) for row in range(count)])
        torch.testing.assert_close(encoder.encode_tokens(tokens), predictor.encode_tokens(tokens), atol=1e-5, rtol=0)


def test_eight_bits_are_close(exported, predictor):
    folder = exported[0].folder
    tokens = predictor.tokenise(text for _, text in predictor.labels)
    rounded = OnnxEncoder(folder / "encoder_int8.onnx", 1).encode_tokens(tokens)
    assert 0 < (rounded - predictor.encode_tokens(tokens)).abs().max() < 0.2
    cosine = (rounded * predictor.encode_tokens(tokens)).sum(dim=1)
    assert cosine.min() > 0.9
    assert (folder / "encoder_int8.onnx").stat().st_size < 0.5 * (folder / "encoder.onnx").stat().st_size


def test_vectors_and_labels_belong_together(exported, predictor):
    vectors = np.load(exported[0].folder / "vectors.npy")
    table = pq.read_table(exported[0].folder / "labels.parquet")
    assert list(zip(table["uid"].to_pylist(), table["text"].to_pylist(), strict=True)) == predictor.labels
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), vectors)
    scores, ids = predictor.search(predictor.encode(["a red cat"]), 5)
    found = predictor.encode(["a red cat"]).numpy() @ vectors.T
    np.testing.assert_allclose(found[0, ids[0]], scores[0], atol=1e-5)


def test_the_program_of_the_readme_ranks_as_the_model_does(exported, predictor):
    folder = exported[0].folder
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 14
    assert "prime_xmc" not in program
    assert "torch" not in program
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    (prediction,) = predictor.predict(["perl module to parse dates"])
    shown = eval(done.stdout)
    assert [label for label, _ in shown] == [label.id for label in prediction.labels]
    assert [score for _, score in shown] == pytest.approx([label.score for label in prediction.labels], abs=1e-3)


def test_other_vectors_need_what_they_are_made_of(toy_bundle):
    with pytest.raises(ValueError, match="expected vectors theta, W or mixture, got 'V'"):
        choose_vectors(toy_bundle, "V")
    with pytest.raises(FileNotFoundError, match="holds no classifiers"):
        choose_vectors(toy_bundle, "W")
    with pytest.raises(FileNotFoundError, match=r"has no ensemble\.json"):
        choose_vectors(toy_bundle, "mixture")


def test_a_mixture_is_what_the_ensemble_searches(toy_bundle, tmp_path, predictor):
    import shutil

    model = shutil.copytree(toy_bundle, tmp_path / "model")
    digest = encoder_digest(model)
    classifiers = torch.nn.functional.normalize(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)))
    save_classifiers(model / "classifiers", classifiers, digest=digest, labels=labels_digest(model), settings={})
    weights = {"theta": 0.25, "W": 0.75, "neighbours": 0.0, "lexical": 0.0}
    content = {"format_version": 1, "encoder": digest, "weights": weights, "k": None, "temperature": None}
    content |= {"num_validation": 0, "criterion": [], "validation": {}}
    (model / "ensemble.json").write_text(json.dumps(content))
    prototypes, of_theta = choose_vectors(model, "theta")
    assert of_theta == weights
    torch.testing.assert_close(choose_vectors(model, "W")[0], classifiers)
    torch.testing.assert_close(choose_vectors(model, "mixture")[0], 0.25 * prototypes + 0.75 * classifiers)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.txt exists and holds no prime_onnx\.json: it is not overwritten"):
        check_output(tmp_path / "mine.txt")
    check_output(tmp_path / "new")


def test_a_folder_of_something_else_is_left_alone(predictor, toy_bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"exists and holds no prime_onnx\.json: it is not overwritten"):
        export_folder(predictor, toy_bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_encoder_that_differs_is_not_written(predictor, toy_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_writer, "export_encoder", lambda encoder, path: path.touch())
    monkeypatch.setattr(folder_writer, "largest_difference", lambda *arguments: 0.01)
    with pytest.raises(ValueError, match=r"differ by up to 0\.01 from the model's, expected at most 0\.0001"):
        export_folder(predictor, toy_bundle, tmp_path / "folder")
    monkeypatch.setattr(folder_writer, "largest_difference", lambda *arguments: float("nan"))
    with pytest.raises(ValueError, match="differ by up to nan"):
        export_folder(predictor, toy_bundle, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_the_difference_is_seen(exported, predictor):
    class Other:
        def encode_tokens(self, tokens: Ragged) -> torch.Tensor:
            return predictor.encode_tokens(tokens) + 0.5

    tokens = predictor.tokenise(["a red cat"])
    difference = largest_difference(Other(), exported[0].folder / "encoder.onnx", tokens)
    assert difference == pytest.approx(0.5, abs=1e-4)
