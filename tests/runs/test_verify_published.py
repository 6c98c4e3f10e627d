"""``examples/verify_published.py`` in miniature: golden scores and a table, with a hub on this machine."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pyterrier as pt
import pytest
import tiny
from hub_server import serving_hub

from pyterrier_rankdistillm import MonoElectra, runs

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "verify_published.py"


@pytest.mark.slow
def test_it_says_what_agrees_what_differs_and_what_was_not_run(model: tiny.Tiny, tmp_path: Path) -> None:
    texts = ["yeast and bread", "the cat sat"]
    right = MonoElectra(model.folder, device="cpu").rank("why does bread rise", texts).sort_values("docno")["score"]
    passages = [[text, round(score, 6)] for text, score in zip(texts, right, strict=True)]
    wrong = [[text, score + 0.1] for text, score in passages[:1]]
    stated = [
        {"model": name, "source": "<here>", "query": "why does bread rise", "passages": given}
        for name, given in (("webis/whole", passages), ("webis/whole", wrong), ("webis/nothing", passages))
    ]
    (tmp_path / "golden.json").write_text(json.dumps(stated), encoding="utf-8")
    run = pt.get_dataset("rankdistillm:demo").get_results()
    runs.write(run[(run["rank"] < 3) & run["qid"].isin(["q01", "q02"])], tmp_path / "bm25.run")
    command = [
        sys.executable, "-W", "ignore", str(SCRIPT), "--golden", "golden.json", "--model", "webis/whole", "--device",
        "cpu", "--dataset", "rankdistillm:demo", "--task", "rankdistillm:demo", "--first-stage", "BM25=bm25.run",
        "--first-stage", "lost=lost.run",
    ]  # fmt: skip
    files = {file.name: file.read_bytes() for file in model.folder.iterdir() if file.is_file()}
    with serving_hub() as hub:
        commit = hub.commit("webis/whole", files)
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("something differs (2 reproduced, 1 differs, 2 not run")
    content = json.loads((tmp_path / "verification" / "verification.json").read_text(encoding="utf-8"))
    page = (tmp_path / "verification" / "verification.html").read_text(encoding="utf-8")
    first, _, third, missing = content["golden"]
    assert (first["measured"], first["status"], first["commit"]) == (passages[0][1], "reproduced", commit)
    assert (third["difference"], third["status"]) == (-0.1, "differs")
    assert missing["status"] == "not run"
    assert "webis/nothing" in missing["why"]
    table, lost = content["tables"]
    assert {cell["system"] for cell in table["cells"]} == {"first stage", "webis/whole"}
    assert lost["status"] == "not run"
    assert "lost.run" in lost["why"]
    assert "<here>" not in page
    assert "&lt;here&gt;" in page


@pytest.mark.parametrize(
    ("statuses", "said", "code"),
    [
        (["reproduced", "not published"], "it agrees", 0),
        (["reproduced", "not run"], "nothing differs, but not all was run", 3),
        (["not run", "differs"], "something differs", 1),
    ],
)
def test_the_verdict(statuses: list[str], said: str, code: int) -> None:
    script = runpy.run_path(str(SCRIPT))
    golden, *cells = ({"status": status} for status in statuses)
    told, status = script["verdict"]({"golden": [golden], "tables": [{"cells": cells}]})
    assert told.startswith(said)
    assert status == code
