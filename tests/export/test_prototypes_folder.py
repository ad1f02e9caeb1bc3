import pytest
import torch
from safetensors.torch import load_file, save_file

from prime_xmc.export.folder import read_config
from prime_xmc.export.prototypes_folder import load_prototype_network


def test_the_network_makes_the_exported_prototypes(toy_bundle):
    network, label_emb = load_prototype_network(toy_bundle, read_config(toy_bundle))
    assert not network.training
    made = network(torch.arange(48), label_emb)
    torch.testing.assert_close(made, load_file(toy_bundle / "prototypes.safetensors")["prototypes"])


def test_fewer_labels_than_free_vectors(copy):
    """Labels can be removed from a model."""
    config = read_config(copy)
    config["prototypes"] |= {"num_labels": 5}
    for name, key in (("prototypes", "label_emb"), ("centroids", "centroids")):
        path = copy / f"{name}.safetensors"
        save_file({part: rows[:5].contiguous() for part, rows in load_file(path).items()}, path)
        assert key in load_file(path)
    path = copy / "prototype_network.safetensors"
    state = load_file(path)
    save_file(state | {"cluster_of_label": state["cluster_of_label"][:5].contiguous()}, path)
    network, label_emb = load_prototype_network(copy, config)
    torch.testing.assert_close(
        network(torch.arange(5), label_emb), load_file(copy / "prototypes.safetensors")["prototypes"]
    )


def test_what_is_missing_or_damaged(copy):
    config = read_config(copy)
    (copy / "centroids.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="the prototype network is damaged"):
        load_prototype_network(copy, config)
    (copy / "centroids.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no centroids\.safetensors"):
        load_prototype_network(copy, config)
