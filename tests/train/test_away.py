"""A task that is trained on another machine: what it brings, what comes back, and what it goes on from."""

import dataclasses
import os

import pytest

from lmplay.data.carried import CarriedData, pack_store
from lmplay.data.prepare import prepare
from lmplay.processes import SpawningContext
from lmplay.runs.checkpoints import latest
from lmplay.runs.mirror import Mirror, packed_run
from lmplay.runs.names import step_of
from lmplay.runs.settings import Settings
from lmplay.train.away import Ended, Lacking, News, Trip, code_of, train_away
from lmplay.train.loop import Trainer
from lmplay.train.phases import choose_plan
from lmplay.train.setup import set_up
from lmplay.train.worker import Task
from support.results import differences, results
from support.small import make_text, write_plan

pytestmark = [pytest.mark.process, pytest.mark.slow]

SMALL = {
    "context_len": 16,
    "batch_size": 4,
    "warmup_steps": 2,
    "device": "cpu",
    "threads": 1,
    "validation_interval": 2,
    "validation_tokens": 200,
    "save_interval": 2,
    "lr_schedule": "constant",
}
MODEL = '''"""One of the user's own: an embedding and a head."""
from dataclasses import dataclass
from torch import nn
from .sizes import WIDTH

@dataclass
class Config:
    vocab_size: int = 257
    max_len: int = 16

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, WIDTH)
        self.head = nn.Linear(WIDTH, config.vocab_size)

    def forward(self, tokens):
        return self.head(self.table(tokens))
'''


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Settings of a run of the user's own experiment, on text and a tokenizer that only this machine has."""
    own = tmp_path / "experiments" / "mine"
    own.mkdir(parents=True)
    (own / "model.py").write_text(MODEL, encoding="utf-8")
    (own / "sizes.py").write_text("WIDTH = 8\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text(make_text(20, 1), encoding="utf-8")
    plan = write_plan(
        tmp_path, "plain", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}], {"train": "bpe", "vocab_size": 280}
    )
    monkeypatch.chdir(tmp_path)
    return Settings(exp="mine", training_plan=plan, out="gpt_out", run_name="away", **SMALL)


def put(content):
    return bytes(content)


def trip(settings, brought=()):
    """The trip of one run, with all that is in its folder."""
    plan = choose_plan(settings)
    data = CarriedData.of(plan, prepare(plan, settings.tokenizer, progress=False))
    task = Task((settings,), (("lmp_trainer",),))
    folder = settings.out_folder / settings.run_name
    runs = {settings.run_name: packed_run(folder, put)} if folder.is_dir() else {}
    return Trip(task, data, code_of(task), runs, {name: pack_store(name, put) for name in brought})


def travel(one, monkeypatch, elsewhere, wished=lambda news: False):
    """Train on a machine that has nothing: another data folder, no plan, no experiment. Return all that comes back."""
    monkeypatch.setenv("LMPLAY_DATA", str(elsewhere / "data"))
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr(
        "lmplay.train.worker.worker_context", lambda preload: SpawningContext()
    )  # with this environment
    elsewhere.mkdir(exist_ok=True)
    back = []
    for news in train_away(one, put, lambda: wished(back)):
        back.append(news)
    return back


def take_in(back, folder):
    copy = Mirror(folder, lambda info: None)
    for news in back:
        for _, change in news.changes if isinstance(news, News) else ():
            copy.take(change)


def test_a_run_elsewhere_is_the_run_here_and_goes_on_from_what_came_back(asked, tmp_path, monkeypatch):
    here = dataclasses.replace(asked, run_name="here", max_steps=6)
    assert Trainer(set_up(here, ["lmp_trainer"])).train() == "finished"
    asked = dataclasses.replace(asked, max_steps=4)
    nothing = trip(asked)
    folder = asked.out_folder / "away"
    names = nothing.data.store_names
    full = trip(asked, names)
    with monkeypatch.context() as there:
        (lacking,) = travel(nothing, there, tmp_path / "there")
        assert isinstance(lacking, Lacking) and sorted(lacking.stores) == sorted(names)
        assert not list((tmp_path / "there").glob("lmplay-work*/*"))
        back = travel(full, there, tmp_path / "there")
        assert isinstance(back[-1], Ended) and back[-1].outcomes == ["finished"]
        assert nothing.data.lacking() == []  # the data stay
        assert not list((tmp_path / "there").glob("lmplay-work*/*"))
    take_in(back, folder)
    assert step_of(latest(folder / "checkpoints")) == 4
    more = trip(dataclasses.replace(asked, max_steps=6), names)
    with monkeypatch.context() as there:
        back = travel(more, there, tmp_path / "third")
    take_in(back, folder)
    assert differences(results(folder), results(asked.out_folder / "here")) == []
    went_on = [change for news in back[:-1] for _, change in news.changes if change.path == "train.csv"]
    assert went_on and all(change.offset > 0 for change in went_on)  # what was there is not trained again


def test_a_wish_to_stop_lets_it_save(asked, tmp_path, monkeypatch):
    asked = dataclasses.replace(asked, max_steps=100_000, save_interval=0)
    full = trip(asked, trip(asked).data.store_names)

    def trains(back):
        return any(news.shown for news in back)

    with monkeypatch.context() as there:
        back = travel(full, there, tmp_path / "there", wished=trains)
    assert back[-1].outcomes == ["stopped"]
    take_in(back, asked.out_folder / "away")
    assert step_of(latest(asked.out_folder / "away" / "checkpoints")) > 0
    assert os.getcwd() == str(tmp_path)
