"""Writes run folders that a comparison can judge: losses of four documents at each validation, which are known."""

import csv

import numpy as np

from lmplay.runs.run import Run, read_run
from support.making_runs import fall, make_run

DOCUMENTS = np.array([2.0, 1.0, 3.0, 4.0])  # together what making_runs notes as scored


def make_judged_run(folder, experiment: str, seed: int, effect: float = 0.0, **more) -> Run:
    """Write a run whose loss lies `effect` above that of others, and by chance a little off for each seed."""
    noise = 0.002 * np.random.default_rng([seed, len(experiment)]).normal()
    more = {"steps": 120, "config": {"max_len": 256, "n_layer": 4}} | more
    make_run(folder, experiment=experiment, seed=seed, loss=lambda t: fall(t) + effect + noise, **more)
    documents = folder / "validate_documents"
    documents.mkdir()
    lines = [f"python,{i},{n:.0f},99,{n:.0f}" for i, n in enumerate(DOCUMENTS)]
    text = "\n".join(["dataset,document,tokens,bytes,scored_tokens", *lines])
    (documents / "documents_main.csv").write_text(text + "\n")
    own = 0.01 * np.random.default_rng(len(experiment)).normal(size=4)
    own -= own @ DOCUMENTS / DOCUMENTS.sum()  # together they are what validate.csv says
    for row in csv.DictReader((folder / "validate.csv").open()):
        np.save(documents / f"main_{int(float(row['step'])):08d}.npy", DOCUMENTS * (float(row["loss"]) + own))
    return read_run(folder)
