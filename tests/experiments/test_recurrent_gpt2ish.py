import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from support.plain_gpt2ish import SMALL, assert_same_function, build, load, parameters, tokens


@pytest.fixture(scope="module")
def recurrent():
    return load("recurrent_gpt2ish")


def like_gpt2ish(model):
    gpt2ish = load("gpt2ish")
    plain = gpt2ish.Model(gpt2ish.Config(**SMALL)).to(model.head.weight).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def loss_and_gradients(model, batch, repeat=1):
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    for i in range(repeat):
        loss.backward(retain_graph=i < repeat - 1)
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_forward_and_gradients(recurrent):
    assert_same_function(build(recurrent, "6l"))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_loss_and_gradients_are_gpt2ish(recurrent, dtype, tolerance):
    model = build(recurrent, "6l", dtype)
    plain, batch = like_gpt2ish(model), tokens(batch=4)
    loss, gradients = loss_and_gradients(model, batch)
    expected_loss, expected = loss_and_gradients(plain, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}"
        )


def test_one_graph_twice(recurrent):
    once = loss_and_gradients(build(recurrent, "6l"), tokens())[1]
    twice = loss_and_gradients(build(recurrent, "6l"), tokens(), repeat=2)[1]
    for name in once:
        torch.testing.assert_close(twice[name], 2 * once[name], rtol=1e-10, atol=1e-12)


def test_gradients_through_a_cache_of_the_caller(recurrent):
    """In parts, as whole: the gradient of a later part reaches the tokens of an earlier one."""
    model = build(recurrent, "6l")
    whole = torch.autograd.grad(model(tokens())[:, -1].square().sum(), list(model.parameters()))
    cache = model.new_cache(2)
    parts = [model(part, cache=cache) for part in tokens().split((3, 1, 4), dim=1)]
    for found, expected in zip(torch.autograd.grad(parts[-1][:, -1].square().sum(), list(model.parameters())), whole):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_trains_one_token_at_a_time(recurrent):
    model = build(recurrent, "6l")
    lengths = []
    model.blocks[1].register_forward_hook(lambda _, inputs, output: lengths.append(output.shape[1]))
    logits = model(tokens())
    assert lengths == [1] * 8
    lengths.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), logits, rtol=0, atol=1e-12)
    assert lengths == [8]


def test_memory_grows_with_the_length(recurrent):
    """What a token keeps for the backward pass does not grow with the number of tokens before it."""
    model = build(recurrent, "6l", max_len=64)
    kept = []
    for length in (16, 32, 64):
        sizes = {}

        def keep(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(tokens(length=length))
        kept.append(sum(sizes.values()))
        del logits
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.01)


def test_a_batch_leaves_nothing_behind(recurrent, monkeypatch):
    """Buffers are freed with the graph, without waiting for the garbage collector."""
    model, caches = build(recurrent, "6l"), []
    new_cache = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda batch: caches.extend(new := new_cache(batch)) or new)
    gc.disable()
    try:
        model(tokens()).sum().backward()
        buffers = [weakref.ref(tensor) for cache in caches for tensor in (cache.keys, *cache.gradients)]
        assert len(buffers) == 3 * SMALL["n_layer"]
        caches.clear()
        assert all(buffer() is None for buffer in buffers)
    finally:
        gc.enable()


def test_sums_stay_float32_under_autocast(recurrent):
    model, caches = build(recurrent, "6l", torch.float32), []
    new_cache = model.new_cache
    model.new_cache = lambda batch: caches.extend(new := new_cache(batch)) or new
    plain, gradients = like_gpt2ish(model), []
    for each in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = each(tokens()).float().square().mean()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
    assert {cache.keys.dtype for cache in caches} == {torch.bfloat16}
    assert {total.dtype for cache in caches for total in cache.gradients} == {torch.float32}
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("variant, count", [("6l", 120_560_209), ("micro", 6_848_721)])
def test_parameters(recurrent, variant, count):
    assert parameters(recurrent, variant) == count


def test_compile_leaves_it_as_it_is(recurrent):
    model = build(recurrent, "6l")
    expected = model.head(model.body(tokens()))
    model.body = torch.compile(model.body, backend="eager")
    torch.testing.assert_close(model.head(model.body(tokens())), expected)


def test_costs_what_gpt2ish_costs(recurrent):
    """Parameters and products: and they are counted without a thousand steps."""
    from lmplay.model.cost import cost_of

    gpt2ish = load("gpt2ish")
    assert cost_of(recurrent, recurrent.config("6l", 50257)) == cost_of(gpt2ish, gpt2ish.config("6l", 50257))
