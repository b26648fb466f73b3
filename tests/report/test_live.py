"""The page that follows runs: what it reads, whom it answers, and how it looks in a real browser."""

import http.client
import json
import os
import socket
import threading
from contextlib import contextmanager

import pytest

from lmplay.cli import plotstats, trainer
from lmplay.errors import UserError
from lmplay.report.live import Live
from lmplay.report.overlay import overlay
from lmplay.report.page import page_content
from lmplay.report.plot_options import PlotOptions
from lmplay.report.report import of_overlay
from lmplay.report.serve import start
from support.browser import Browser, needs_browser
from support.making_runs import make_run
from support.small import TINY, make_text
from support.whole_runs import EVIL, make


def set_running(folder, n_steps=200):
    """Make a run one that this process trains."""
    info = json.loads((folder / "run.json").read_text())
    info["status"] = "running"
    info["process"] = {"pid": os.getpid(), "host": socket.gethostname()}
    info["progress"] = {"step": 0, "tokens": 0, "seconds": 0.0, "phases": [{"name": "main", "n_updates": n_steps}]}
    (folder / "run.json").write_text(json.dumps(info))


def cut(path, rows):
    """Cut a table to these rows; return a function that brings the others back."""
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[: rows + 1]))
    return lambda: path.write_text(text)


@contextmanager
def served(live):
    with start(live, range(1)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_each_look_tells_what_changed_and_comes_to_what_a_report_holds(tmp_path):
    for seed in (0, 1):
        make(tmp_path / f"base{seed}", seed=seed)
        make(tmp_path / f"idea{seed}", "idea", seed, -0.2, "gpt2ish")
    make(tmp_path / "another", "another", 0, 0.3, "gpt2ish")
    whole = [cut(tmp_path / "idea1" / name, rows) for name, rows in (("train.csv", 60), ("validate.csv", 5))]
    set_running(tmp_path / "idea1", 120)
    live = Live([], tmp_path, PlotOptions())
    live.look()
    first, state = json.loads(live.since("")), live.state
    assert set(first["groups"]) == set(first["order"]) and "60 of 120" in first["parts"]["progress"]
    live.look()
    nothing = json.loads(live.since(state))
    assert nothing["state"] == state and nothing["groups"] == nothing["parts"] == {}
    bytes_before = live.runs.bytes_read()
    for bring_back in whole:
        bring_back()
    live.look()
    news = json.loads(live.since(state))
    assert news["order"] == ["gpt2ish:tiny (n=2)", "another:tiny", "idea:tiny (n=2)"]
    assert list(news["groups"]) == ["idea:tiny (n=2)"] and "samples" in news["parts"]  # which is one group now
    assert live.runs.bytes_read() - bytes_before < (tmp_path / "idea1" / "train.csv").stat().st_size
    assert set(json.loads(live.since("older.3"))["groups"]) == set(news["order"])  # of a server before this one
    report = of_overlay(overlay([], tmp_path, PlotOptions()))
    assert live.content() == page_content(report.groups, report.panels)


def test_the_verdict_so_far_is_that_of_the_losses_in_common(tmp_path):
    from lmplay.report.comparison import Arm, compare_arms
    from lmplay.runs.run import read_run

    runs = {
        name: {seed: make(tmp_path / f"{name}{seed}", name, seed, effect, "gpt2ish") for seed in range(3)}
        for name, effect in (("gpt2ish", 0.0), ("idea", -0.2))
    }
    live = Live([], tmp_path, PlotOptions())
    live.look()
    arms = [Arm(name, {1e-3: {s: read_run(run.folder) for s, run in of.items()}}) for name, of in runs.items()]
    verdict = compare_arms(arms[0], arms[1:]).candidates[0].verdict
    table = live.parts()["table"]
    assert verdict.word == "better" and "<b>✓</b> better" in table and "seeds and documents" in table
    assert f"{verdict.difference:+.4f}" in table and verdict.interval in table
    assert "lmp_compare" in live.parts()["remarks"]


def test_it_answers_this_machine_alone(tmp_path):
    make_run(tmp_path / EVIL.replace("/", "")[:20], steps=20)
    with served(Live([], tmp_path, PlotOptions())) as server:
        assert server.server_address[0] == "127.0.0.1"

        def ask(path, host=None):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.putrequest("GET", path, skip_host=True)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read().decode()

        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "", None):
            status, _, said = ask("/state", host)
            assert status == 403 and "gpt2ish" not in said, host
        for host in (f"127.0.0.1:{server.server_port}", "localhost:9999", "LOCALHOST", "[::1]:1"):
            assert ask("/state?since=", host)[0] == 200
        status, headers, page = ask("/", "localhost")
        headers = dict(headers)
        assert status == 200 and headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert (
            "Access-Control-Allow-Origin" not in headers and "default-src 'none'" in headers["Content-Security-Policy"]
        )
        assert page.count("<script") == 3 and ask("/etc/passwd", "localhost")[0] == 404
        with pytest.raises(UserError, match="is taken"):
            start(server.live, range(server.server_port, server.server_port + 1))


def test_a_folder_without_runs_is_followed_too(tmp_path):
    live = Live([], tmp_path / "out", PlotOptions())
    live.look()
    assert "no runs in" in live.parts()["subtitle"] and live.content()["groups"] == []
    state = live.state
    live.look()
    assert live.state == state
    make_run(tmp_path / "out" / "a", steps=20)
    live.look()
    assert live.parts()["title"] == "gpt2ish:tiny" and len(live.content()["groups"]) == 1


def test_a_run_that_goes_away_or_is_damaged_is_said_on_the_page(tmp_path, monkeypatch, capsys):
    for name in "ab":
        make_run(tmp_path / name, steps=20)
    live = Live([], tmp_path, PlotOptions())
    live.look()
    whole = (tmp_path / "a" / "train.csv").read_bytes()
    for content in (b"step,loss\n1,x\n", b"\0" * 99, whole + b"\xff" * 9, whole):
        (tmp_path / "a" / "train.csv").write_bytes(content)
        live.look()
        json.loads(live.since("")), live.parts(), live.since(f"{live.token}.{'9' * 5000}")
    assert [group["label"] for group in live.content()["groups"]] == ["a", "b"]
    with served(live) as server:  # what nobody thought of is one line, once
        monkeypatch.setattr(live, "_show", {}.__getitem__)
        (tmp_path / "a" / "train.csv").write_bytes(whole[:-9])
        for _ in range(2):
            live._seen, server._next = None, 0.0
            with pytest.raises(http.client.RemoteDisconnected):
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
                connection.request("GET", "/state")
                connection.getresponse()
    said = capsys.readouterr().err
    assert said.count("--serve could not answer") == 1 and "Traceback" not in said


def test_ports_that_are_none(capsys):
    for words in (["--serve", "my_run"], ["--serve=70000"]):
        with pytest.raises(SystemExit):
            plotstats.main(words)
        assert "0 to 65535" in capsys.readouterr().err


LINES = "Object.fromEntries(document.getElementById('curves').data.filter(t => !t.meta).map(t => [t.name, t.x.at(-1)]))"


@pytest.mark.process
@pytest.mark.slow
@needs_browser
def test_a_page_follows_training_in_a_browser(tmp_path, monkeypatch):
    """Runs are trained for real while the page is open: a second one begins, and the first one goes on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(make_text(60, 1), encoding="utf-8")
    flags = [*TINY, "--data", "text.txt", "--tokenizer", "bytes", "--validation-interval", "2", "--threads", "1"]
    flags += ["--lr-schedule", "constant"]

    def train(*more):
        return trainer.main([*flags, *more])

    assert train("--run-name", "first", "--max-steps", "8") == 0
    with served(Live([], tmp_path / "gpt_out", PlotOptions())) as server, Browser(tmp_path / "profile") as browser:
        browser.look(1300, 900)
        browser.open(server.address)
        assert browser.value("document.querySelectorAll('#legend button').length") == 1
        assert list(browser.value(LINES).values()) == [8 * 4 * 16]
        browser.value("document.querySelector('input[name=axis][value=step]').click()")
        assert train("--run-name", "second", "--max-steps", "8", "--lr", "0.01") == 0
        browser.until(f"Object.values({LINES}).join() === '8,8'")  # over steps, as was chosen before
        browser.until("document.getElementById('part-progress').innerText.split('8 of 8').length === 3")
        browser.value("document.querySelectorAll('#legend button')[1].click()")
        assert train("--run-name", "first", "--max-steps", "14") == 0
        browser.until(f"Object.values({LINES}).includes(14)")
        assert len(browser.value(LINES)) == 1  # what was hidden stays hidden
        browser.until("document.getElementById('part-progress').innerText.includes('14 of 14')")
        assert browser.messages == []


@pytest.mark.process
@needs_browser
def test_the_page_in_a_browser_light_dark_and_on_a_telephone(tmp_path):
    out = tmp_path / "runs"
    for seed in (0, 1):
        make(out / f"base{seed}", seed=seed, noise=0.3)
        make(out / f"idea{seed}", f"idea{EVIL[:4]}", seed, -0.2, "gpt2ish", sample=EVIL, noise=0.3)
    bring_back = cut(out / "idea1" / "train.csv", 60)
    set_running(out / "idea1", 120)
    with served(Live([], out, PlotOptions(each_run=True))) as server, Browser(tmp_path / "profile") as browser:
        plot = "document.getElementById('curves')"

        def click(name, value):
            browser.value(f"document.querySelector('input[name={name}][value=\"{value}\"]').click()")

        browser.look(1300, 900)
        browser.open(server.address)
        assert "running" in browser.value("document.getElementById('part-progress').innerText")
        click("split", "train")
        rough = {}
        for percent in ("0", "5", "20"):  # the more smoothing, the less a curve turns
            click("smooth", percent)
            y = browser.value(f"{plot}.data.filter(t => !t.meta)[0].y")
            rough[percent] = sum(abs(a - 2 * b + c) for a, b, c in zip(y, y[1:], y[2:]))
        assert rough["0"] > 2 * rough["5"] > 4 * rough["20"]
        click("height", "log")
        assert browser.value(f"{plot}.layout.yaxis.type") == "log"
        low, high = browser.value(f"{plot}.layout.yaxis.range")
        assert 0 < low < high < 1.5  # of losses between 3 and 10
        browser.value(f"Plotly.relayout({plot}, {{'xaxis.range[0]': 5, 'xaxis.range[1]': 6}}).then(() => 1)")
        bring_back()
        browser.until("document.getElementById('part-progress').innerText.includes('120 of 120')")
        assert browser.value(f"{plot}.layout.xaxis.range") == [5, 6]  # what was zoomed stays so
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        browser.look(1300, 900, dark=True)
        browser.until(f"getComputedStyle(document.body).backgroundColor !== '{paper}'")
        browser.until(f"{plot}.layout.paper_bgcolor === '#14181c'")
        browser.look(390, 844)
        browser.until(f"{plot}.querySelector('svg').clientWidth < 390")
        assert browser.value("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert browser.value("window.hacked ?? null") is None and browser.messages == []
        server.shutdown()
        server.server_close()
        browser.until("document.getElementById('following').className === 'lost'")
