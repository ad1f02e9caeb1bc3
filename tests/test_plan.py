"""The entry point, from configuration and command line."""

from omegaconf import OmegaConf


def test_overrides_of_train_are_overrides_of_plan(compose):
    overrides = [
        "dataset=synthetic",
        "model=prime_lite",
        "index=hnsw",
        "optimizer.lr=0.5",
        "experiment=public_code",
    ]
    planned, trained = (
        OmegaConf.to_container(compose(*overrides, "run_dir=run", name=name), resolve=False)
        for name in ("plan", "train")
    )
    assert {key: planned[key] for key in trained if key != "task"} == {
        key: trained[key] for key in trained if key != "task"
    }


def test_through_a_process(call, tmp_path):
    done = call("plan", "dataset=custom", f"dataset.dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 1
    assert "its size is unknown: give num_labels=... num_queries=... num_test_queries=..." in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
