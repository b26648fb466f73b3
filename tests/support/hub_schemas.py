"""The public datasets that plans name, as a HubServer serves them: files, columns and configs, with a few rows."""

import io

import pyarrow
import pyarrow.parquet as pq

WORDS = "one two three four five six seven eight nine ten".split()
WEB = dict(id="<urn:uuid:1>", dump="CC-MAIN-2013-20", url="http://a.org/b", date="2013-05-18T05:48:54Z")
WEB |= dict(file_path="s3://commoncrawl/a.warc.gz", language="en", language_score=0.97)
FINEWEB_2 = ("deu_Latn", "fra_Latn", "tur_Latn", "fin_Latn", "vie_Latn", "ell_Grek", "ind_Latn", "arb_Arab", "heb_Hebr")
FINEWEB_2 += ("fil_Latn",)


def repositories() -> dict[str, dict[str, dict[str, bytes]]]:
    """{id: {revision: {path: content}}}"""
    more = dict(language_script="Latn", minhash_cluster_size=1, top_langs="{}")
    refined = dict(url="http://a.org/b", timestamp="2013-05-18T10:42:00Z", dump="CC-MAIN-2013-20", segment="1")
    said = [{"content": "How far?", "role": "user"}, {"content": "Two miles, or a little more.", "role": "assistant"}]
    return {
        "tiiuae/falcon-refinedweb": _of(None, {"train": _rows("content", image_urls=[["a", "b"]], **refined)}),
        "HuggingFaceFW/fineweb": _of(
            {"sample-10BT": {"train": "sample/10BT/000_00000"}}, {"": _rows(token_count=9, **WEB)}
        ),
        "HuggingFaceFW/fineweb-2": _of(
            {name: {s: f"data/{name}/{s}/000" for s in ("train", "test")} for name in FINEWEB_2},
            {"": _rows(**WEB, **more)},
        ),
        "Skylion007/openwebtext": _of({"plain_text": {"train": "data/train"}}, {"": _rows()}),
        "roneneldan/TinyStories": _of(None, {"train": _rows(), "validation": _rows()}),
        "wikimedia/wikipedia": _of(
            {f"20231101.{code}": {"train": f"20231101.{code}/train"} for code in ("en", "es")},
            {"": _rows(id="12", url="http://a.org/b", title="Numbers")},
        ),
        "HuggingFaceTB/smoltalk": _of(
            {"all": {"train": "data/all/train", "test": "data/all/test"}},
            {"": [{"messages": said, "source": "everyday"}] * 60},
        ),
    }


def _rows(column="text", n=60, **others) -> list[dict]:
    return [
        {column: " ".join(f"{word} {i}" for word in WORDS) * (2 + i % 3), **others} for i in range(n)
    ]  # of several lengths


def _of(configs, tables) -> dict[str, dict[str, bytes]]:
    """One revision. configs: {config: {split: where its files begin}}; tables: {split: rows}, "" for all splits."""
    if configs is None:
        return {"main": {f"data/{split}-00000-of-00001.parquet": _parquet(rows) for split, rows in tables.items()}}
    card, files, content = ["---", "configs:"], {}, _parquet(tables[""])
    for name, splits in configs.items():
        card += [f'- config_name: "{name}"', "  data_files:"]
        for split, begin in splits.items():
            path = f"{begin}-00000-of-00001.parquet"
            card += [f"  - split: {split}", f"    path: {path}"]
            files[path] = content
    return {"main": {"README.md": "\n".join([*card, "---", ""]).encode(), **files}}


def _parquet(rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
