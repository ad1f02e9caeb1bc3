from prime_xmc.export.model_size import describe_size


def test_each_scorer_counts_for_itself_and_card_and_metrics_do_not(tmp_path):
    sizes = {
        "model.safetensors": 100,
        "1_Pooling/config.json": 7,
        "README.md": 1000,
        "metrics.json": 1000,
        "neighbours/neighbours.safetensors": 30,
        "classifiers/classifiers.json": 2,
        "classifiers/classifiers.safetensors": 20,
        "lexical/metrics.json": 5,
    }
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert describe_size(tmp_path) == {
        "model_bytes": 107,
        "classify/model_bytes": 22,
        "neighbours/model_bytes": 30,
        "lexical/model_bytes": 5,
    }
