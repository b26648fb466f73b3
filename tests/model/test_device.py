"""In which precision and by which attention kernel a model computes."""

import pytest
import torch
import torch.nn.functional as F

from lmplay.model.device import SHORT_CONTEXT, amp_dtype, precision

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(amp_dtype(CPU) is None, reason="this processor does not compute in bfloat16")


def kernels_of_attention(amp: bool, context_len: int) -> set[str]:
    """torch's operations that one attention over context_len tokens, forward and backward, is made of."""
    q, k, v = (torch.randn(1, 2, context_len, 16, requires_grad=True) for _ in range(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with precision(CPU, amp, context_len):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.float().sum().backward()
    return {event.key for event in profile.key_averages()}


@needs_bfloat16
@pytest.mark.parametrize(
    "amp, context_len, products", [(True, SHORT_CONTEXT, True), (True, SHORT_CONTEXT + 1, False), (False, 64, False)]
)
def test_short_sequences_in_bfloat16_take_plain_products(amp, context_len, products):
    found = kernels_of_attention(amp, context_len)
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in found) != products
    assert ("aten::_scaled_dot_product_attention_math" in found) == products


@needs_bfloat16
def test_plain_products_are_attention():
    q, k, v = (torch.randn(2, 3, 40, 16, dtype=torch.bfloat16) for _ in range(3))
    with precision(CPU, True, 40):
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = (q.double() @ k.double().mT / 4).masked_fill(torch.ones(40, 40).triu(1) > 0, -torch.inf)
    torch.testing.assert_close(found.double(), scores.softmax(-1) @ v.double(), rtol=0.03, atol=0.03)
    assert found.dtype == torch.bfloat16


@needs_bfloat16
def test_the_choice_ends_with_the_block():
    def chosen():
        cuda = torch.backends.cuda
        return (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.fp16_bf16_reduction_math_sdp_allowed(),
            torch.is_autocast_enabled("cpu"),
        )

    before = chosen()
    with pytest.raises(ZeroDivisionError), precision(CPU, True, 64):
        assert chosen() != before
        1 / 0
    assert chosen() == before
