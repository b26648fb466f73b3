"""Reports, looked at in a real browser where there is one."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lmplay.report import page as pages
from lmplay.report.comparison import Arm, compare_arms
from lmplay.report.overlay import overlay
from lmplay.report.plot_options import PlotOptions
from lmplay.report.provenance import code_change, last_samples, settings_of
from lmplay.report.report import as_csv, as_markdown, of_comparison, of_overlay, page_name, write
from support.browser import CHROMIUM, needs_browser
from support.making_runs import fall, make_run
from support.whole_runs import EVIL, MODEL, make

ROOT = Path(__file__).resolve().parents[2]


def comparison_of(*models, seeds=3):
    """Of lists of runs, the baseline's first."""
    arms = [Arm(runs[0].spec, {1e-3: dict(enumerate(runs[:seeds]))}) for runs in models]
    return compare_arms(arms[0], arms[1:])


def data_in(page: Path) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8")).group(
            1
        )
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of gpt2ish, of a better model and of one whose every text is hostile."""
    out = tmp_path_factory.mktemp("runs")
    evil = "<b>x<script>window.hacked=3"  # no folder has a / in its name
    return [
        [make(out / f"base{s}", seed=s) for s in range(3)],
        [
            make(
                out / f"idea{s}",
                "idea",
                s,
                -0.2,
                "gpt2ish",
                "Better & faster.",
                "n_layer: int = 5",
                settings={"lr": 0.003, "seed": s},
            )
            for s in range(3)
        ],
        [
            make(
                out / f"evil{s}",
                evil,
                s,
                0.2,
                "gpt2ish",
                EVIL,
                f"# {EVIL}",
                EVIL,
                variant=EVIL,
                run=EVIL,
                plan="quick",
                status=EVIL,
                command=[EVIL],
                device={"name": EVIL},
            )
            for s in range(3)
        ],
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    comparison = comparison_of(*runs)
    paths = write(of_comparison(comparison), tmp_path_factory.mktemp("report") / "page.html")
    assert [path.suffix for path in paths] == [".md", ".csv", ".html"] and all(path.is_file() for path in paths)
    return comparison, paths[-1]


def in_browser(page: Path, script: str, tmp_path: Path, size: str = "1400,1000"):
    """What `script`, the body of an async function, returns at the end of `page`, and the console's messages."""
    copy = tmp_path / "in_browser.html"
    runner = """<script>(async () => {{ let result; try {{
        result = await (async () => {{ {0} }})(); }} catch (error) {{ result = {{error: String(error.stack)}}; }}
        const node = document.createElement("pre"); node.id = "result"; node.textContent = JSON.stringify(result);
        document.body.append(node);
        console.error("canary"); }})();</script>"""
    text = page.read_text(encoding="utf-8")
    head, end = text.rsplit("</body>", 1)
    copy.write_text(head + runner.format(script) + "</body>" + end, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--v=0",
            f"--window-size={size}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    result = json.loads(html.unescape(found.group(1)))
    assert not (isinstance(result, dict) and "error" in result), result
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len([line for line in messages if "canary" in line]) == 1  # so errors are seen
    return result, [line for line in messages if "canary" not in line]


TRY_EVERYTHING = """
    const plot = id => document.getElementById(id), seen = {};
    const choose = (name, value) => document.querySelector('input[name=' + name + '][value=' + value + ']').click();
    const lines = id => plot(id).data.filter(t => !t.meta);
    const state = () => ({y: plot('curves').layout.yaxis.title.text, x: plot('curves').layout.xaxis.title.text,
    type: plot('curves').layout.xaxis.type,
        ends: lines('curves').map(t => [t.x.at(-1), t.y.at(-1)]),
        small: plot(document.querySelector('.plot.small').id).layout.xaxis.title.text,
        differences: lines('difference').map(t => [t.x.at(-1), t.y.at(-1)]), curves: lines('curves').length,
        pale: plot('curves').data.length - lines('curves').length,
        verdicts: plot('difference').data.filter(t => t.meta === 'verdict').length});
    seen.first = state();
    for (const [name, value] of [['metric', 'accuracy'], ['metric', 'bits_per_byte'], ['metric', 'loss'],
                                 ['split', 'train'], ['split', 'validate'],
                                 ['axis', 'step'], ['axis', 'seconds'], ['axis', 'flops'], ['axis', 'tokens'],
                                 ['scale', 'linear'], ['scale', 'log'],
                                 ['lines', 'each'], ['lines', 'mean']]) {
        choose(name, value);
        seen[value] = state();
    }
    const buttons = [...document.querySelectorAll('#legend button')];
    buttons[1].click();
    seen.hidden = {...state(), pressed: buttons.map(b => b.getAttribute('aria-pressed'))};
    buttons[1].click();
    buttons[2].dispatchEvent(new MouseEvent('dblclick', {bubbles: true}));
    seen.alone = state();
    buttons[2].dispatchEvent(new MouseEvent('dblclick', {bubbles: true}));
    seen.all = state();
    const event = {'xaxis.range[0]': 5, 'xaxis.range[1]': 6};
    await Plotly.relayout(plot('curves'), event);
    seen.zoomed = plot('curves').layout.xaxis.ticktext;
    const overlaps = [...document.querySelectorAll('main > *, .beside > *')].filter(n => n.nextElementSibling)
        .filter(n => {
        const a = n.getBoundingClientRect(), b = n.nextElementSibling.getBoundingClientRect();
        return a.height && b.height && a.bottom > b.top + 1 && a.right > b.left + 1 && b.right > a.left + 1;
        }).map(n => n.outerHTML.slice(0, 80));
    return {seen, overlaps, legend: buttons.map(b => b.textContent), hacked: window.hacked ?? null,
    requests: performance.getEntriesByType('resource').map(e => e.name),
        wide: document.documentElement.scrollWidth - window.innerWidth,
        drawn: [...document.querySelectorAll('.plot')].map(n => n.querySelectorAll('.scatterlayer .trace').length),
        width: plot('curves').querySelector('svg').clientWidth, names: plot('curves').data.map(t => t.name || ''),
        text: document.querySelector('main').innerText,
        details: [...document.querySelectorAll('details.code')].map(d => { const box = d.querySelector('.diff'),
        open = box.getClientRects().length; d.open = false;
            return [open, box.checkVisibility()]; })};
"""


@pytest.mark.process
@needs_browser
def test_choices_legend_and_hostile_text_in_a_browser(page, tmp_path):
    comparison, path = page
    result, messages = in_browser(path, TRY_EVERYTHING, tmp_path)
    seen = result["seen"]
    assert messages == [] and result["hacked"] is None
    assert [url for url in result["requests"] if not url.startswith("data:")] == []
    assert result["overlaps"] == [] and result["wide"] <= 0 and result["width"] > 1000
    assert len(result["drawn"]) == 4 and all(result["drawn"])  # curves, difference, two experiments with a parent
    # what is drawn is what was measured
    losses = [comparison.baseline.loss, *(one.arm.loss for one in comparison.candidates)]
    tokens = 120 * 12_800
    first = seen["first"]
    assert (first["x"], first["y"], first["type"]) == ("training tokens, logarithmic", "loss (nats per token)", "log")
    assert (first["curves"], first["pale"], first["verdicts"]) == (3, 3 + 9, 2)
    np.testing.assert_allclose(first["ends"], [[tokens, loss] for loss in losses], rtol=2e-2)
    np.testing.assert_allclose(
        first["differences"], [[tokens, one.verdict.difference] for one in comparison.candidates], rtol=1e-4
    )
    assert seen["accuracy"]["y"].startswith("accuracy") and seen["bits_per_byte"]["y"] == "bits per byte"
    np.testing.assert_allclose(
        np.array(seen["bits_per_byte"]["ends"])[:, 1],
        np.array(first["ends"])[:, 1] / 4 / np.log(2) - 0.025 / np.log(2),
        rtol=5e-2,
    )
    assert seen["loss"] == first == seen["validate"] == seen["tokens"] == seen["log"] == seen["mean"] == seen["all"]
    assert all(a[1] < b[1] for a, b in zip(seen["train"]["ends"], first["ends"]))
    assert (seen["step"]["x"], seen["seconds"]["x"], seen["flops"]["x"]) == (
        "steps, logarithmic",
        "training time (seconds), logarithmic",
        "training FLOPs, logarithmic",
    )
    for axis, end in (("step", 120), ("seconds", 24), ("flops", 6e7 * tokens)):
        np.testing.assert_allclose(np.array(seen[axis]["ends"] + seen[axis]["differences"])[:, 0], end, rtol=1e-5)
        assert seen[axis]["small"] == seen[axis]["x"]
    assert seen["linear"]["type"] == "linear" and seen["linear"]["ends"] == first["ends"]
    assert (seen["each"]["curves"], seen["each"]["pale"]) == (9, 3)
    assert (seen["hidden"]["curves"], len(seen["hidden"]["differences"]), seen["hidden"]["pressed"]) == (
        2,
        1,
        ["true", "false", "true"],
    )
    assert seen["alone"]["curves"] == 1 and seen["alone"]["ends"] == [first["ends"][2]]
    assert seen["zoomed"] == ["100k", "200k", "500k", "1M"]
    # text is text
    evil = comparison.candidates[1].arm.label
    assert evil.startswith("<b>x<script>") and result["legend"] == [
        "gpt2ish:tiny (baseline), n=3",
        "idea:tiny, n=3",
        f"{evil}, n=3",
    ]
    assert not any("<" in name for name in result["names"])
    assert (
        result["text"].count(EVIL) >= 6
        and "+    n_layer: int = 5" in result["text"]
        and "-    n_layer: int = 4" in result["text"]
    )
    assert result["details"] == [[1, False], [1, False]]


@pytest.mark.process
@needs_browser
def test_a_spike_does_not_flatten_the_page(tmp_path):
    make_run(tmp_path / "base", steps=200, every=10)
    folder = make_run(tmp_path / "idea", experiment="idea", steps=200, every=10, loss=lambda t: fall(t) - 0.1)
    lines = (folder / "validate.csv").read_text().splitlines()
    cells = lines[10].split(",")
    cells[lines[0].split(",").index("loss")] = "900"
    (folder / "validate.csv").write_text("\n".join([*lines[:10], ",".join(cells), *lines[11:]]) + "\n")
    path = write(of_overlay(overlay([tmp_path], tmp_path, PlotOptions())), tmp_path / "report.html")[-1]
    script = """return ['curves', 'difference'].map(id => { const l = document.getElementById(id).layout;
        return [l.yaxis.range, l.annotations.map(a => a.text).join()]; });"""
    for (low, high), said in in_browser(path, script, tmp_path)[0]:
        assert high - low < 10 and "out of the picture" in said and "idea:tiny" in said


@pytest.mark.process
@needs_browser
def test_page_on_a_telephone(page, tmp_path):
    script = """return {wide: document.documentElement.scrollWidth - window.innerWidth, inner: window.innerWidth,
        plots: [...document.querySelectorAll('.plot')].map(n => n.querySelector('svg').clientWidth)};"""
    result, messages = in_browser(page[1], script, tmp_path, size="500,900")
    assert messages == [] and result["wide"] <= 0 and max(result["plots"]) < result["inner"]


@pytest.mark.thorough
@pytest.mark.process
@needs_browser
def test_twenty_long_runs_stay_small_and_draw(tmp_path):
    for i in range(20):
        make(
            tmp_path / "runs" / f"run{i}",
            f"idea_{i // 2}" if i > 1 else "gpt2ish",
            i % 2,
            -0.01 * i,
            "gpt2ish",
            steps=2000,
            noise=0.3,
            every=20,
            line=f"n_layer: int = {i // 2}",
        )
    found = overlay([tmp_path / "runs"], tmp_path, PlotOptions())
    *_, path = write(of_overlay(found), tmp_path / "report.html")
    assert path.stat().st_size < 10e6
    each = overlay([tmp_path / "runs"], tmp_path, PlotOptions(each_run=True))
    assert len(each.groups) == 20 and write(of_overlay(each), tmp_path / "each.html")[-1].stat().st_size < 10e6
    script = """document.querySelector('input[value=linear]').click();
        document.querySelector('input[value=train]').click();
        return {lines: document.getElementById('curves').data.length,
        drawn: [...document.querySelectorAll('.plot')].filter(n => n.querySelector('.trace')).length};"""
    result, messages = in_browser(tmp_path / "each.html", script, tmp_path)
    assert messages == [] and result == {"lines": 20, "drawn": 2 + 9}


def test_drawn_interval_ends_at_the_verdict(page):
    comparison, path = page
    data = data_in(path)
    for group, one in zip(data["groups"][1:], comparison.candidates):
        verdicts = {"tokens": one.verdict, "step": one.verdict, **one.at_equal}
        other_device = one is comparison.candidates[1]  # whose seconds don't compare
        assert ("seconds" in verdicts) != other_device and "flops" in verdicts
        assert set(group["difference"]["validate"]["loss"]) == set(verdicts)
        for axis, verdict in verdicts.items():
            drawn = group["difference"]["validate"]["loss"][axis]
            at_end = drawn["verdict"]
            assert [at_end[k] for k in ("y", "low", "high")] == pytest.approx(
                [verdict.difference, verdict.low, verdict.high], rel=1e-4
            )
            assert at_end["covers"] == verdict.covers == "seeds and documents"
            assert at_end["x"] == pytest.approx(drawn["x"][-1], rel=1e-4)
            assert drawn["y"][-1] == pytest.approx(verdict.difference, rel=1e-3)
            assert group["difference"]["train"]["loss"].get(axis, {"verdict": None})["verdict"] is None
    assert data["groups"][0]["difference"] == {}


def test_curves_are_means_of_the_seeds_without_bands(runs, page):
    group = data_in(page[1])["groups"][1]
    tables = [run.table("validate") for run in runs[1]]
    losses = np.array([table["accuracy"] for table in tables])
    course = group["curves"]["validate"]
    np.testing.assert_allclose(course["y"]["accuracy"], [losses.mean(0)], rtol=1e-5)
    np.testing.assert_allclose(course["runs"]["accuracy"], losses, rtol=1e-5)
    np.testing.assert_allclose(course["x"]["flops"], tables[0]["flops"], rtol=1e-5)
    base = np.array([run.table("validate")["accuracy"] for run in runs[0]])
    drawn = group["difference"]["validate"]["accuracy"]["tokens"]
    assert drawn["y"][-1] == pytest.approx((losses - base)[:, -1].mean(), rel=1e-4)
    assert drawn["verdict"] is None  # there is no verdict on accuracies, so no interval either


def test_nothing_is_loaded_and_no_text_is_markup(page):
    text = page[1].read_text(encoding="utf-8")
    assert len(text) < 6e6
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Tags().feed(text)
    assert [tag for tag, _ in found].count("script") == 3 and not {tag for tag, _ in found} & {
        "img",
        "iframe",
        "b<script",
        "object",
        "base",
    }
    for _, attributes in found:
        assert not any(name.startswith("on") for name in attributes)
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href"))
    assert not re.search(r"url\(|@import", text.split("<main>")[0])


def test_tokenizers_that_differ_are_compared_in_bits_per_byte(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", "idea", tokenizer="other")
    found = overlay([tmp_path], tmp_path, PlotOptions())
    data = data_in(write(of_overlay(found), tmp_path / "report.html")[-1])
    assert data["alike"] is False and list(data["groups"][1]["difference"]["validate"]) == ["bits_per_byte"]


def test_table_as_markdown_and_csv(page):
    comparison, path = page
    rows = list(csv.DictReader(path.with_suffix(".csv").open(encoding="utf-8")))
    assert [row["verdict"] for row in rows] == ["baseline", "better", "worse"] and rows[1]["model"] == "idea:tiny"
    for row, one in zip(rows[1:], comparison.candidates):
        for name in ("difference", "low", "high"):
            assert float(row[name]) == getattr(one.verdict, name) and float(row[f"at_equal_flops_{name}"]) == getattr(
                one.at_equal["flops"], name
            )
        assert float(row["tokens_needed"]) == one.savings["tokens"].factor and row["seed_numbers"] == "0 1 2"
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]
    assert len(table) == 5 and {len(row) for row in cells} == {13}
    assert (
        cells[3][1].strip() == "better" and cells[3][2].strip() == f"{comparison.candidates[0].verdict.difference:+.4f}"
    )
    assert comparison.candidates[0].verdict.sentence() in text and not re.search(r"(?<!\\)<", text)


def test_formulas_and_bars_in_names(tmp_path):
    runs = [[make(tmp_path / "b", seed=0)], [make(tmp_path / "x", "=1+1|2", 0, -0.1)]]
    report = of_comparison(comparison_of(*runs))
    assert "'=1+1|2:tiny" in as_csv(report) and "=1+1\\|2:tiny" in as_markdown(report)
    assert page_name(report) == "compare_=1-1-2-tiny_vs_gpt2ish-tiny_quick"


def test_refused_and_missing_verdicts(tmp_path):
    runs = [[make(tmp_path / "b", seed=0)], [make(tmp_path / "leak", "leak", 0, -2, causal=False)]]
    refused = of_comparison(comparison_of(*runs))
    assert refused.rows[1][1] == "refused" and any("not causal" in warning for warning in refused.warnings)
    none = of_comparison(compare_arms(Arm("gpt2ish:tiny", {1e-3: {0: None}}), [Arm("idea:tiny", {1e-3: {0: None}})]))
    assert none.rows[1][1] == "none"
    for report in (refused, none):
        page = pages.as_html(report)
        assert report.rows[1][1] in page and "nan" not in as_csv(report).lower()


def test_a_badge_says_at_equal_what_where_another_verdict_differs(page):
    comparison, _ = page
    one = comparison.candidates[0]
    assert of_comparison(comparison).rows[1][1] == "better"
    other = replace(one.at_equal["flops"], word="worse")
    changed = replace(one, at_equal={**one.at_equal, "flops": other})
    report = of_comparison(replace(comparison, candidates=[changed, *comparison.candidates[1:]]))
    assert report.rows[1][1] == "better (at equal tokens; at equal FLOPs worse)"
    text = pages.as_html(report)
    assert "<small>at equal tokens; at equal FLOPs worse</small>" in text and 'text-anchor="middle">0<' in text
    assert '<td data-label="difference">' in text and "gpt2ish:<wbr>tiny" in text


def test_report_of_runs(runs, tmp_path):
    folder = runs[0][0].folder.parent
    found = overlay([folder], folder, PlotOptions())
    report = of_overlay(found)
    assert [group.label for group in report.groups][:1] == ["gpt2ish:tiny (n=3)"] and report.verdicts is None
    *_, path = write(report, tmp_path / "deep" / "report.html")
    groups = {group["label"]: group for group in data_in(path)["groups"]}
    drawn = groups["idea:tiny (n=3)"]["difference"]["validate"]["loss"]["tokens"]
    verdict = comparison_of(runs[0], runs[1]).candidates[0].verdict
    assert [drawn["verdict"][k] for k in ("y", "low", "high")] == pytest.approx(
        [verdict.difference, verdict.low, verdict.high], rel=1e-4
    )
    row = next(row for row in csv.DictReader(path.with_suffix(".csv").open()) if row["experiment"] == "idea:tiny")
    assert float(row["validate_loss"]) == pytest.approx(
        np.mean([run.table("validate")["loss"].iloc[-1] for run in runs[1]])
    )


def test_code_is_compared_as_it_ran(runs, tmp_path, monkeypatch):
    base, idea, _ = (group[0] for group in runs)
    change = code_change(idea, [base])
    assert (change.against, change.counts, change.docstring) == ("gpt2ish as it ran", (2, 2), "Better & faster.")
    assert "-    n_layer: int = 4\n+    n_layer: int = 5\n" in change.difference
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "gpt2ish").mkdir(parents=True)
    (tmp_path / "experiments" / "gpt2ish" / "model.py").write_text(
        MODEL.format(doc="Now.", parent=None, line="now: int = 0")
    )
    now = code_change(idea, [])
    assert now.against == "gpt2ish as it is now" and "-    now: int = 0\n" in now.difference
    assert "no parent" in code_change(base, []).against
    orphan = make(tmp_path / "orphan", "orphan", parent="gone")
    assert "no experiment named 'gone'" in code_change(orphan, []).against
    (orphan.folder / "code" / "orphan" / "model.py").write_bytes(b"\xff\xfe")
    assert code_change(orphan, [base]).difference == ""
    shutil.rmtree(orphan.folder / "code")
    assert "no code" in code_change(orphan, [base]).against
    secret = make(tmp_path / "a" / "secret", "secret")
    orphan.info["experiment"]["name"] = "../../a/secret/code/secret"  # not out of the run's folder
    assert (orphan.folder / "code").mkdir() is None and (
        orphan.folder / "code" / orphan.info["experiment"]["name"] / "model.py"
    ).is_file()
    assert "no code" in code_change(orphan, [secret]).against


def test_settings_that_differ_and_samples(runs):
    differing, common = settings_of([group[:2] for group in runs[:2]])
    assert (
        differing["seed"] == ["0, 1", "0, 1"] and differing["lr"] == ["0.001", "0.003"] and "max_len" not in differing
    )
    assert common["max_len"] == "256" and differing["code"] == ["gpt2ish", "idea"]
    when, found = last_samples(runs[0][0])
    assert when.startswith("step 120, 1,536,000 tokens") and found == {"1": "a text", "2": "more"}
    (runs[0][0].folder / "samples.txt").write_bytes(b"\xff\xff=== update")
    assert last_samples(runs[0][0]) == ("", {})
    (runs[0][0].folder / "samples.txt").write_text(
        "=== update 120, 1,536,000 tokens, validation loss 3.1000\n--- 1\nold\n\n"
        "=== step 240, 3,072,000 tokens, validation loss 2.9000\n--- 1, forward\nfirst\n--- 1, backward\ntsrif\n"
        "--- 10, forward\ntenth\n--- 2, forward\nsecond\n\n"
    )
    when, found = last_samples(runs[0][0])
    assert when == "step 240, 3,072,000 tokens, validation loss 2.9000" and found["1, backward"] == "tsrif"
    assert list(found) == ["1, forward", "1, backward", "10, forward", "2, forward"]
    cells = pages.samples_html([pages.ReportGroup("a", [runs[0][0]])], {"a": ""})
    assert [cells.index(f">{text}<") for text in ("tsrif", "first", "second", "tenth")] == sorted(
        cells.index(f">{text}<") for text in ("tsrif", "first", "second", "tenth")
    )


def plotstats(*words, cwd, code="from lmplay.cli.plotstats import main"):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; sys.exit(main())", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        timeout=120,
    )


@pytest.mark.process
def test_command_line(tmp_path):
    make(tmp_path / "gpt_out" / "a")
    done = plotstats("--report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for suffix in ("html", "md", "csv"):
        assert (
            f"wrote gpt_out/report.{suffix}" in done.stdout
            and (tmp_path / "gpt_out" / f"report.{suffix}").stat().st_size
        )
    assert (
        plotstats("--report", "new/mine.html", "--to", "plots", cwd=tmp_path).returncode == 0
        and (tmp_path / "new" / "mine.html").is_file()
    )
    (tmp_path / "file").write_text("")
    for words, said in (
        (["--report", "a"], "--report=FILE"),
        (["--report", "file/x.html"], "no report can be written"),
    ):
        done = plotstats(*words, "--to", "plots", cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.process
def test_without_plotly_one_line_says_how_to_get_it(tmp_path):
    make(tmp_path / "gpt_out" / "a")
    blocked = "sys.modules['plotly'] = None; from lmplay.cli.plotstats import main"
    done = plotstats("--report", cwd=tmp_path, code=blocked)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install 'lmplay[report]'" in done.stderr
    assert sorted(path.name for path in (tmp_path / "gpt_out").iterdir()) == ["a"]
    assert plotstats(cwd=tmp_path, code=blocked).returncode == 0
