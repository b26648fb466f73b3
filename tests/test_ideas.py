"""docs/ideas/: every experiment on one page, drawings and figures up to date, code that does as it says."""

import importlib.util
import re

import pytest
import torch
import torch.nn.functional as F

from support.ideas import FOLDER, PAGES, RESULTS, ROOT, code_of, experiments_of, mended
from support.plain_gpt2ish import load

NEAR = {"rtol": 1e-4, "atol": 1e-5}
SIZES = dict(vocab_size=23, max_len=8, n_layer=2, n_embd=8)


def build(name: str, **fields):
    """Build a small model of an experiment, with the numbers in all of its parameters moved."""
    experiment = load(name)
    torch.manual_seed(0)
    fields = {"n_head": 2, **SIZES, **fields}
    if name in ("mingru", "gru", "lstm"):
        del fields["n_head"]
    model = experiment.build(experiment.config(next(iter(experiment.variants)), **fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens() -> torch.Tensor:
    return torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(2))


def unified_embeddings(page):
    e = build("unified_embedding").tokens_embedding
    yield page["embed"](tokens(), e.table.weight, e.first, e.second), e(tokens())
    yield page["fold"](e.table.weight, e.first, e.second), e.weights()


def unified_weights(page):
    layer = build("unified_weights", column_gain=True, offsets=True).head
    names = ("row_gain", "row_offset", "column_gain", "column_offset")
    yield page["effective"](layer.weight, *(layer.vectors[name]() for name in names)), layer.effective()[0]
    model = build("unified_weights_shared_bias")
    layer = model.head
    bias = page["predicted"](layer.code, layer.constant(), layer.to_bias, model.shared)
    yield bias, layer.effective(model.shared)[1]
    layer = build("unified_weights_private").head
    bias = page["predicted"](layer.code, layer.vectors["bias"](), layer.predictors["bias"], layer.hidden)
    yield bias, layer.effective()[1]
    model = build("unified_weights_shared", expand=2)
    vector = model.blocks[0].attention.q.vectors["row_gain"]
    free = vector.values[:-1] + vector.values[-1]
    yield page["predicted"](vector.code, free, model.matrices[vector.matrix]), vector(model.predict())


def sacrificial_training(page):
    model = build("combined_all", multiple=2, expand=2)
    derived, x = model.derive(), random(2, 8, 8)
    up = model.blocks[0].feed_forward.up
    m, n, b = (up.vectors[name](model.predict()) for name in ("row_gain", "column_gain", "bias"))
    wanted = F.linear(x, *(derived[f"blocks.0.feed_forward.up.{kind}"] for kind in ("weight", "bias")))
    yield page["layer"](x, up.weight, m, n, b), wanted
    add = model.blocks[0].attention_add
    yield page["add"](x, random(2, 8, 8) + 1, add.predict, add.floor, add.ceil), add(x, random(2, 8, 8) + 1)
    for name in ("sacrificial_all", "sacrificial_embedding_weights"):
        model = build(name, multiple=2, **({"expand": 2} if name == "sacrificial_all" else {}))
        yield model.fold()(tokens()), model(tokens())


def attention(page):
    x = random(2, 8, 8)
    for name in ("attention_norm", "attention_position", "attention_focus"):
        part = build(name).blocks[0].attention
        q, k, v = part.qkv(x).view(2, 8, 3, 2, 4).permute(2, 0, 3, 1, 4)
        more = {}
        if name == "attention_norm":
            more["norm"] = part.values_norm
        elif name == "attention_position":
            more["P"] = part.distances_embedding.weight.view(8, 2, 4).transpose(0, 1)
        else:
            more["s"] = (2 * 4**0.5 * part.focus(x).sigmoid()).transpose(1, 2)[..., None]
        yield part.out(page["attend"](q, k, v, **more).transpose(1, 2).reshape(2, 8, 8)), part(x)


def residual_weights(page):
    x, y = random(2, 8, 8), random(2, 8, 8) + 1
    for weights in ("free", "linear"):
        add = build("residual_weights", weights=weights).blocks[0].attention_add
        yield page["add"](x, y, add.z if weights == "free" else add.predict, add.floor, add.ceil), add(x, y, 1.0)[0]


def memory(page):
    model, x = build("neural_memory", n_memory_head=2, n_cell=5), random(1, 8, 8)
    layer, store = (next(m for m in model.modules() if type(m).__name__ == kind) for kind in ("MemoryLayer", "Memory"))
    keys, values = store()
    yield page["memory"](x[0], keys, values, layer.query, layer.out, 2), layer(x, keys, values)[0]
    model = build("memory_linear", n_memory_head=2, n_cell=5)
    layer, store = (next(m for m in model.modules() if type(m).__name__ == kind) for kind in ("MemoryLinear", "Memory"))
    answer = page["memory"](x[0], *store(), layer.query, layer.out, 2)
    yield answer if layer.direct is None else answer + layer.direct(x)[0], layer(x, store())[0]
    experts = next(m for m in build("memory_experts", n_expert_head=2).modules() if type(m).__name__ == "Experts")
    cells = experts.cells.weight.unflatten(1, (2, -1)).transpose(0, 1)
    yield page["mixture"](x[0], experts.select, cells, experts.project), experts(x, experts.derive())[0]
    experts = build("memory_blocks", n_expert_head=2, n_cell=5).blocks[1].experts
    cells = experts.cells.weight.unflatten(1, (2, -1)).transpose(0, 1)
    yield page["mixture"](x[0], experts.select, cells, experts.project), experts(x)[0]


def recurrent_training(page):
    with torch.no_grad():
        whole = build("recurrent_gpt2ish")(tokens())
    yield page["token_by_token"](build("recurrent_gpt2ish"), tokens()), whole


def rank_promotion(page):
    promotion = build("rank_promotion", scales="3,3", n_hidden=8).blocks[0].attention.promotions[0]
    windows, held = random(1, 8, 3, 16), torch.ones(1, 8, dtype=torch.bool)
    state = type("State", (), {"n_items": torch.zeros(1, dtype=torch.int64), "utility_sum": torch.zeros(1)})()
    utilities, summaries, up = promotion(windows, held, state)
    yield page["promoted"](utilities[0].detach(), 3), up[0]
    yield page["summary"](windows[0], promotion.distil[0])[up[0]], summaries[0][up[0]]


def pldr(page):
    part, q = build("pldr").blocks[0].attention, random(2, 2, 8, 4)
    law = part.power_law
    learned = (law.weight, law.bias, law.exponent, law.coupling, law.coupling_bias)
    yield from zip(page["operator"](q, part.network, *learned), law(part.network(q.mT @ q)), strict=True)


def time_arrow(page):
    window = tokens()
    wanted = load("reverse_time").module.make_batch(window, 22, None)
    yield from zip(page["reversed_batch"](window, 22), wanted, strict=True)
    config = type("Config", (), {"vocab_size": 23})
    wanted = load("both_ways").module.make_batch(window, 22, None, config)
    yield from zip(page["both_directions"](window, 23, 24), wanted, strict=True)


def hidden_and_moved(page):
    window, config = tokens(), type("Config", (), {"vocab_size": 23, "max_len": 8, "order": "end_in"})
    module = load("bert").module
    inputs, targets = module.make_batch(window, 22, torch.Generator().manual_seed(0), config)
    ours, asked = page["hidden"](window, 23, module.CHOSEN, torch.Generator().manual_seed(0))
    yield asked, targets
    yield torch.where(inputs == 23, inputs, 0), torch.where(inputs == 23, ours, 0)
    module = load("permute").module
    wanted = module.make_batch(window, 22, None, config)
    yield from zip(page["moved"](window, list(module.places("end_in", 8)), 22), wanted, strict=True)


def kan(page):
    layer, x = build("kan", n_hidden=4).blocks[0].feed_forward.up, random(3, 8)
    weights = layer.weigh.weight.view(4, 8, -1)
    range_of = layer.centre, layer.log_half_width.exp()
    yield page["functions"](x, weights[..., 0], weights[..., 1:], *range_of, layer.grid), layer(x)


def recurrent_layers(page):
    layer, x = build("mingru", n_hidden=6).blocks[0].mingru, random(2, 8, 8)
    gate, candidate = layer.gate_candidate(x).chunk(2, dim=-1)
    candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
    yield layer.out(page["mingru"](gate.sigmoid(), candidate)), layer(x)
    x, decay, B, C = random(8, 3), -random(8).abs(), random(8, 5), random(8, 5) + 1
    wanted, _ = load("ssm").module.scan(x[None, :, None], decay[None, :, None], B[None], C[None], chunk=4)
    yield page["state_space"](x, decay, B, C), wanted[0, :, 0]


def baselines(page):
    model = build("modern")
    part, x = model.blocks[0].feed_forward, random(2, 8, 8)
    yield page["feed_forward"](x, part.up, part.down), part(x)
    yield page["norm"](x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    yield page["capped"](model.head(model.hidden(tokens(), None))), model(tokens())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_code_of_a_page_computes_what_the_experiment_does(path):
    """Within ten lines a function, as the page promises."""
    code, page = code_of(path.read_text(encoding="utf-8")), {}
    exec(compile(code, str(path), "exec"), page)
    compared = list(globals()[path.stem](page))  # a function above for each page
    assert compared
    for found, wanted in compared:
        torch.testing.assert_close(found, wanted, **NEAR)
    assert max(len(part.splitlines()) for part in re.split(r"\n\n\n", code)) <= 11


def test_each_experiment_is_on_one_page():
    folders = sorted(path.parent.name for path in ROOT.glob("experiments/*/model.py"))
    assert sorted(name for path in PAGES for name in experiments_of(path.read_text(encoding="utf-8"))) == folders
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+\.md)\)", index) and set(re.findall(r"\]\((\w+\.md)\)", index)) == {
        p.name for p in PAGES
    }
    assert "ideas/README.md" in (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")


def test_drawings_are_up_to_date():
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    drawn = draw.drawn()
    assert set(drawn) == {path.stem for path in PAGES}
    for name, svg in drawn.items():
        assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == svg, "python docs/ideas/draw.py"
        assert f"({name}.svg)" in (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_figures_are_those_of_the_results(path):
    """The tables are made of RESULTS.md, and any other figure of a result is there, or on the experiment's own page."""
    page = path.read_text(encoding="utf-8")
    assert mended(page) == page, "python tests/support/ideas.py"
    prose = re.sub(r"<!-- (\w+) -->.*?<!-- end -->", "", page.partition("## What came out here")[2], flags=re.DOTALL)
    sources = [RESULTS, ROOT / "benchmarks" / "results" / "mingru_scan.json"]
    sources += [ROOT / "experiments" / name / "README.md" for name in experiments_of(page)]
    known = " ".join(source.read_text(encoding="utf-8") for source in sources if source.exists())
    for figure in re.findall(r"[+-]?\d+\.\d+", re.sub(r"\]\([^)]*\)", "", prose)):
        assert figure in known, figure
