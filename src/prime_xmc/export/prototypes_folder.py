"""What the prototypes of an exported model were made of: the network, the centroids, the free vectors and the texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from prime_xmc.export.folder import AGAIN, CENTROIDS, CONFIG, NETWORK, PROTOTYPES
from prime_xmc.foreign import check_tensors_file
from prime_xmc.model.new_labels import check_sources
from prime_xmc.model.prototypes import Prototypes


def load_prototype_network(
    model: Path, config: Mapping[str, Any], device: str | torch.device = "cpu"
) -> tuple[Prototypes, Float[Tensor, "label d"]]:
    """Return the Label Prototype Network with its banks, in evaluation mode, and the text embedding of every label.

    Args:
        model: Folder of the model.
        config: Content of its prime_config.json.
        device: Device to compute on.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or the prototypes have sources that are not in the folder.
    """
    settings = config["prototypes"]
    num_labels, num_free_vectors = settings["num_labels"], settings["num_free_vectors"]
    num_private = settings.get("num_private", 0)
    padded = max(num_labels, num_free_vectors, num_private)  # a module has at least as many labels as free vectors
    check_sources(settings)
    for name in (NETWORK, CENTROIDS):
        if not (model / name).is_file():
            raise FileNotFoundError(f"{model.absolute()} has no {name}: expected a complete model folder; {AGAIN}")
    try:
        tensors_of = {name: check_tensors_file(model / name) for name in (NETWORK, CENTROIDS, PROTOTYPES)}
        largest = max((number for entry in tensors_of[NETWORK].values() for number in entry["shape"]), default=1)
        if (
            max(num_free_vectors, num_private, settings["feedforward"]) > largest
            or settings["num_heads"] > settings["dim"]
        ):
            raise ValueError(f"{CONFIG} asks for more than {NETWORK} has")  # before memory is taken for it
        prototypes = Prototypes(
            padded,
            settings["dim"],
            num_free_vectors,
            sources=settings["sources"],
            combine=settings.get("combine", "network"),
            num_private=num_private,
            num_heads=settings["num_heads"],
            feedforward=settings["feedforward"],
        )
        with safe_open(model / NETWORK, framework="pt") as tensors:
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        clusters = state["cluster_of_label"]
        prototypes.load_state_dict(state | {"cluster_of_label": pad(clusters, (0, padded - len(clusters)))})
        with safe_open(model / CENTROIDS, framework="pt") as tensors:
            centroids = tensors.get_tensor("centroids")
        with safe_open(model / PROTOTYPES, framework="pt", device=str(device)) as tensors:
            label_emb = tensors.get_tensor("label_emb")
        prototypes.centroids.put(torch.arange(num_labels), centroids)
        if label_emb.shape != (num_labels, settings["dim"]) or not label_emb.is_floating_point():
            found, expected = tuple(label_emb.shape), (num_labels, settings["dim"])
            raise ValueError(f"label_emb in {PROTOTYPES} has the shape {found}, expected {expected} in floating point")
    # the latter ones where a shape, a dtype or a name is another
    except (SafetensorError, ValueError, RuntimeError, IndexError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{model}: the prototype network is damaged ({error}); {AGAIN}") from error
    return prototypes.eval().to(device), label_emb
