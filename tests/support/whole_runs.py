"""Writes run folders with code, samples and losses of documents, for reports."""

import csv
import json

import numpy as np

from lmplay.runs.run import read_run
from support.making_runs import fall, make_run

EVIL = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=2</script>&amp;{{plotly}}"
DOCUMENTS = np.array([40.0, 25.0, 35.0, 60.0])
MODEL = '"""{doc}"""\nparent = {parent!r}\n\n\nclass Config:\n    {line}\n\n\nclass Model:\n    pass\n'


def make(
    folder,
    experiment="gpt2ish",
    seed=0,
    effect=0.0,
    parent=None,
    doc="A model.",
    line="n_layer: int = 4",
    sample="a text",
    **more,
):
    """A run with code, samples, and losses of four documents, each of which is off by an amount of its own."""
    more.setdefault("steps", 120)
    noise = 0.02 * np.random.default_rng(seed).normal() * (1 if experiment == "gpt2ish" else 1.3)
    make_run(
        folder,
        experiment=experiment,
        seed=seed,
        loss=lambda t: fall(t) + effect + noise,
        config={"max_len": 256, "n_layer": 4},
        **more,
    )
    info = json.loads((folder / "run.json").read_text())
    info["experiment"] |= {"parent": parent, "code_hash": experiment}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "code" / experiment).mkdir(parents=True)
    (folder / "code" / experiment / "model.py").write_text(MODEL.format(doc=doc, parent=parent, line=line))
    (folder / "samples.txt").write_text(
        f"=== update 1, 100 tokens, validation loss 9.0000\n--- 1\nold\n\n"
        f"=== update 120, 1,536,000 tokens, validation loss 3.1000\n--- 1\n{sample}\n--- 2\nmore\n\n"
    )
    documents = folder / "validate_documents"
    documents.mkdir()
    (documents / "documents_main.csv").write_text(
        "dataset,document,tokens,bytes,scored_tokens\n"
        + "".join(f"python,{i},{n:.0f},99,{n:.0f}\n" for i, n in enumerate(DOCUMENTS))
    )
    rows = list(csv.DictReader((folder / "validate.csv").open()))
    text = (folder / "validate.csv").read_text().splitlines()
    scored = text[0].split(",").index("validation_tokens")
    (folder / "validate.csv").write_text(
        "\n".join(
            [
                text[0],
                *(
                    ",".join([*cells[:scored], "160.0", *cells[scored + 1 :]])
                    for line_ in text[1:]
                    for cells in [line_.split(",")]
                ),
            ]
        )
        + "\n"
    )
    own = np.random.default_rng(len(experiment)).normal(size=4) * 0.01
    own -= own @ DOCUMENTS / DOCUMENTS.sum()  # together they are what validate.csv says
    for row in rows:
        np.save(documents / f"main_{int(float(row['step'])):08d}.npy", DOCUMENTS * (float(row["loss"]) + own))
    return read_run(folder)
