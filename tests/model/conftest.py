from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

DIM, HEADS, INNER = 16, 2, 24


def bert(**changes):
    sizes = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": INNER}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**({"vocab_size": 50, "max_position_embeddings": 20} | sizes | dropout | changes))
    return BertModel._from_config(config, attn_implementation="eager")


def distilbert(**changes):
    sizes = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "hidden_dim": INNER}
    dropout = {"dropout": 0.0, "attention_dropout": 0.0}
    config = DistilBertConfig(**({"vocab_size": 50, "max_position_embeddings": 20} | sizes | dropout | changes))
    return DistilBertModel._from_config(config, attn_implementation="eager")


@pytest.fixture(scope="session")
def make_backbone():
    """Make a small model without dropout, unless the changes to its configuration say otherwise."""

    def make(kind, **changes):
        model = {"bert": bert, "distilbert": distilbert}[kind](**changes)
        # values in biases and norms too: at 0 and 1, where they start, a mistake with them would not show
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture(params=["bert", "distilbert"])
def backbone(request, make_backbone):
    return make_backbone(request.param)


@pytest.fixture(scope="session")
def without_waiting():
    """Run an action some times on a GPU, for which the host may wait the first time alone."""

    def run(action, times=2):
        try:
            for time in range(times):
                torch.cuda.set_sync_debug_mode("error" if time else "default")
                action()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return run


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operators():
    """Make a context that counts the operators which are called in it, by their names in `counts`."""
    return _Operators
