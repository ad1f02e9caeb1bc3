"""The comparison of run folders sees whatever is lost, and overlooks what tells the time."""

import json
import shutil

import numpy as np
import pytest
import torch
from comparing import differences, leftovers


def write_run(run, seconds):
    """Write a run folder that has a file of each kind."""
    bank = run / "checkpoints" / f"last-{seconds:08x}.banks" / "centroids"
    bank.mkdir(parents=True)
    (bank / "rows-00000.safetensors").write_bytes(b"rows")
    content = {"state_dict": {"w": torch.arange(4.0)}, "banks": {"centroids": f"{bank.parent.name}/centroids"}}
    torch.save(content | {"callbacks": {"path": str(run / "x"), "seconds": seconds}}, run / "checkpoints" / "last.ckpt")
    (run / "metrics.json").write_text(json.dumps({"val/P@1": 0.5, "train/seconds": seconds, "ckpt_path": str(seconds)}))
    (run / "metrics.csv").write_text(f"epoch,val/P@1,seconds\n0,0.25,{seconds}\n1,0.5,{seconds}\n")
    np.savez(run / "predictions.npz", indices=np.arange(6))
    (run / "model").mkdir()
    (run / "model" / "README.md").write_text(f"P@1 is 50\n\nIt took {seconds} seconds\n")
    (run / "train.log").write_text(str(seconds))


@pytest.fixture
def runs(tmp_path):
    for name, seconds in (("a", 1), ("b", 2)):
        write_run(tmp_path / name / "run", seconds)
    return tmp_path / "a" / "run", tmp_path / "b" / "run"


def test_times_and_names_of_folders_are_no_differences(runs):
    assert differences(*runs) == []


def put(name, content):
    return lambda run: (run / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda run: (run / "predictions.npz").unlink(), "predictions.npz is missing"),
        (lambda run: np.savez(run / "predictions.npz", indices=np.arange(7)), "predictions.npz: other numbers"),
        (put("more.json", "{}"), "more.json is left over"),
        (put("metrics.json", '{"val/P@1": 0.25}'), "metrics.json: val/P@1 is 0.25, expected 0.5"),
        (put("metrics.json", '{"train/seconds": 1}'), "metrics.json: val/P@1 is missing"),
        (put("metrics.csv", "epoch,val/P@1,seconds\n1,0.5,2\n"), "metrics.csv:  has 1 entries, expected 2"),
        (put("model/README.md", "P@1 is 40\n"), "model/README.md: another text"),
        (
            lambda run: next(run.rglob("rows-*")).write_bytes(b"Rows"),
            "checkpoints/last.ckpt banks centroids: other numbers",
        ),
        (
            lambda run: shutil.copytree(next(run.glob("checkpoints/*.banks")), run / "checkpoints/last-0badcafe.banks"),
            "checkpoints/last-0badcafe.banks/centroids/rows-00000.safetensors is left over",
        ),
    ],
)
def test_what_is_lost_is_seen(runs, change, found):
    change(runs[1])
    assert differences(*runs) == [found]


def test_other_weights_are_seen(runs):
    path = runs[1] / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["w"][3] = 4
    torch.save(content, path)
    assert differences(*runs) == ["checkpoints/last.ckpt: state_dict w has other numbers"]


def test_half_written_files_are_found(tmp_path):
    half = tmp_path / "cache" / f".custom.{'0' * 32}"
    half.mkdir(parents=True)
    (tmp_path / ".hydra").mkdir()
    assert leftovers(tmp_path) == [half]
