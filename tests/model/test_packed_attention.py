import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prime_xmc.model import packed_attention as implementation
from prime_xmc.model.packed_attention import (
    PackedTexts,
    attention_watched,
    attention_within,
    current_texts,
    packed_attention,
)


def attend_slowly(query, key, value, offsets, window, scaling):
    """Attention of each token by itself, from `window[0]` tokens to the left to `window[1]` to the right; -1: all."""
    rows = []
    shared = query.shape[1] // key.shape[1]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for row in range(start, end):
            first = start if window[0] < 0 else max(start, row - window[0])
            last = end if window[1] < 0 else min(end, row + window[1] + 1)
            heads = []
            for head in range(query.shape[1]):
                keys, values = (rows_[first:last, head // shared] for rows_ in (key, value))
                heads.append((query[row, head] @ keys.T * scaling).softmax(0) @ values)
            rows.append(torch.stack(heads))
    return torch.stack(rows)


class TestPackedAttention:
    OFFSETS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)

    @staticmethod
    def heads(number, seed):
        return torch.randn(1, number, 13, 8, generator=torch.Generator().manual_seed(seed))

    @pytest.fixture(params=["padded", "flash", "flash of equal heads"])
    def way(self, request, monkeypatch):
        """On a CPU, flash attention is what PyTorch says of its function, computed slowly; 2.11 has fewer arguments."""
        monkeypatch.setattr(implementation._current, "texts", PackedTexts(self.OFFSETS, 7))
        if request.param != "padded":

            def varlen_attn(
                query,
                key,
                value,
                cu_seq_q,
                cu_seq_k,
                max_q,
                max_k,
                *,
                scale=None,
                window_size=(-1, -1),
                enable_gqa=False,
            ):
                assert cu_seq_q is cu_seq_k
                assert max_q == max_k == 7
                assert enable_gqa == (query.shape[1] != key.shape[1])
                return attend_slowly(query, key, value, cu_seq_q, window_size, scale or query.shape[-1] ** -0.5).to(
                    query.dtype
                )

            if request.param == "flash of equal heads":
                whole = inspect.signature(varlen_attn)
                fewer = [p for name, p in whole.parameters.items() if name != "enable_gqa"]
                varlen_attn.__signature__ = whole.replace(parameters=fewer)
            monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
            monkeypatch.setattr(implementation._current, "flash", implementation._flash_attention.__wrapped__())
        return request.param

    @pytest.mark.parametrize(("causal", "sliding", "window"), [
        (False, None, (-1, -1)),
        (True, None, (-1, 0)),
        (False, 3, (2, 2)),
        (True, 3, (2, 0)),
        (True, 99, (98, 0)),
    ])  # fmt: skip
    @pytest.mark.parametrize("scaling", [None, 0.7])
    @pytest.mark.parametrize("key_heads", [4, 2])
    def test_definition(self, way, causal, sliding, window, scaling, key_heads):
        query, key, value = self.heads(4, 0), self.heads(key_heads, 1), self.heads(key_heads, 2)
        module = torch.nn.Module()
        module.is_causal = causal
        dtype = torch.float32 if way == "padded" else torch.bfloat16
        found, weights = packed_attention(
            module,
            *(heads.to(dtype) for heads in (query, key, value)),
            None,
            scaling=scaling,
            sliding_window=sliding,
        )
        assert weights is None
        assert (found.dtype, found.shape) == (dtype, (1, 13, 4, 8))
        rows = (heads[0].transpose(0, 1) for heads in (query, key, value))
        expected = attend_slowly(*rows, self.OFFSETS, window, scaling or 8**-0.5)
        tolerance = 1e-5 if way == "padded" else 3e-2
        torch.testing.assert_close(found[0].float(), expected, rtol=tolerance, atol=tolerance)

    def test_what_flash_attention_cannot_is_padded(self, monkeypatch):
        """Float32 and dropout: neither is left out in silence."""
        monkeypatch.setattr(implementation._current, "texts", PackedTexts(self.OFFSETS, 7))
        monkeypatch.setattr(implementation._current, "flash", lambda *_: pytest.fail("it was asked"))
        heads = [self.heads(4, seed) for seed in range(3)]
        packed_attention(torch.nn.Module(), *heads, None)
        halves = [h.bfloat16() for h in heads]
        dropped, kept = (packed_attention(torch.nn.Module(), *halves, None, dropout=p)[0] for p in (0.9, 1e-9))
        assert (dropped - kept).abs().max() > 0.5

    def test_what_is_not_computed(self, monkeypatch):
        monkeypatch.setattr(implementation._current, "texts", PackedTexts(self.OFFSETS, 7))
        heads = [self.heads(4, seed) for seed in range(3)]
        with pytest.raises(ValueError, match="packed attention has no softcap"):
            packed_attention(torch.nn.Module(), *heads, None, softcap=50.0)


TEXTS, OTHERS = (PackedTexts(torch.tensor([0, length], dtype=torch.int32), length) for length in (2, 1))


@pytest.mark.parametrize("occupy", [lambda: attention_within(TEXTS), attention_watched])
def test_another_thread_waits(occupy):
    def enter():
        with attention_within(OTHERS):
            return current_texts()

    with ThreadPoolExecutor(max_workers=1) as thread:
        with occupy():
            waiting = thread.submit(enter)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=10) is OTHERS
