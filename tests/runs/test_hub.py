"""The real client of the Hugging Face hub against one on this machine: models are opened and uploaded, runs fetched.

The client reads its settings when it is imported, so what is asked of it is asked in two other processes, once: online,
and then offline with the same cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from hub_server import Hub, serving_hub
from safetensors.torch import load, save

from pyterrier_rankdistillm import MonoElectra

RUN = b"1 Q0 d1 1 2.0 t\n1 Q0 d0 2 1.0 t\n"

CLIENT = """
import json, sys, warnings
from pathlib import Path
import pandas as pd
from pyterrier_rankdistillm import MonoElectra
from pyterrier_rankdistillm.runs import published
from pyterrier_rankdistillm.runs.download import download, remote_size

warnings.simplefilter("ignore")
given = json.load(sys.stdin)
frame = pd.DataFrame({"qid": "1", "query": "why does bread rise", "docno": ["a", "b"],
                      "text": ["yeast and bread", "the cat sat"]})

def scores(model, **settings):
    reranker = MonoElectra(model, device="cpu", verbose=False, **settings)
    return reranker(frame)["score"].tolist(), reranker.checkpoint.revision

def fetch(name):
    url = f"https://huggingface.co/datasets/webis/rank-distillm/resolve/main/{name}"
    target = Path(given["folder"]) / name
    return download([url], target, md5=given["md5"], verbose=False).read_bytes().decode(), remote_size([url])

def push(repo):
    reranker = MonoElectra("webis/whole", device="cpu", verbose=False)
    reranker.checkpoint
    return reranker.push_to_hub(repo, token="hf_x")

answers = {}
for name, asked in given["asked"].items():
    try:
        answers[name] = {"scores": scores, "fetch": fetch, "push": push}[asked[0]](*asked[1], **asked[2])
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


def ask(hub: Hub, home: Path, asked: dict[str, tuple[str, list[str], dict[str, str]]], **more: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **more,
    }  # fmt: skip
    given = {"asked": asked, "folder": str(home / "runs"), "md5": hashlib.md5(RUN).hexdigest()}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(given), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def hub(model: tiny.Tiny) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in model.folder.iterdir() if file.is_file()}
    weights = load(files["model.safetensors"])
    changed = {name: tensor * 1.5 if "word_embeddings" in name else tensor for name, tensor in weights.items()}
    names = sorted(weights)
    halves = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    sharded = {name: content for name, content in files.items() if name != "model.safetensors"}
    sharded |= {file: save({name: weights[name] for name in part}) for file, part in halves.items()}
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    with serving_hub() as hub:
        old = hub.commit("webis/whole", files | {"model.safetensors": save(changed)})
        hub.branches["webis/whole", "older"] = old
        hub.commit("webis/whole", files)
        hub.commit("webis/sharded", sharded | {"model.safetensors.index.json": json.dumps(index).encode()})
        hub.commit("webis/gated", files)
        hub.gated.add("webis/gated")
        hub.commit("webis/cut", files)
        hub.cut["model.safetensors"] = [1000]
        hub.commit("datasets/webis/rank-distillm", {"a.run": RUN, "b.run": RUN[::-1]})
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> dict[str, Any]:
    commit = hub.commits["webis/whole"][0][0]
    return ask(hub, home, {
        "cut": ("scores", ["webis/cut"], {}),
        "cut, again": ("scores", ["webis/cut"], {}),
        "main": ("scores", ["webis/whole"], {}),
        "branch": ("scores", ["webis/whole"], {"revision": "older"}),
        "commit": ("scores", ["webis/whole"], {"revision": commit}),
        "sharded": ("scores", ["webis/sharded"], {}),
        "gated": ("scores", ["webis/gated"], {}),
        "missing": ("scores", ["webis/nothing"], {}),
        "run": ("fetch", ["a.run"], {}),
        "another run": ("fetch", ["b.run"], {}),
        "push": ("push", ["me/mine"], {}),
        "pushed": ("scores", ["me/mine"], {}),
    })  # fmt: skip


@pytest.fixture(scope="module")
def right(model: tiny.Tiny) -> list[float]:
    import pandas as pd

    frame = pd.DataFrame(
        {"qid": "1", "query": "why does bread rise", "docno": ["a", "b"], "text": ["yeast and bread", "the cat sat"]}
    )
    scores: list[float] = MonoElectra(model.folder, device="cpu", verbose=False)(frame)["score"].tolist()
    return scores


def test_a_model_by_branch_and_by_commit(hub: Hub, online: dict[str, Any], right: list[float]) -> None:
    (old, _), (new, _) = hub.commits["webis/whole"]
    assert online["main"][1] == new
    assert online["main"][0] == pytest.approx(right, abs=1e-5)
    assert online["branch"] == online["commit"]
    assert online["branch"][1] == old
    assert online["branch"][0] != pytest.approx(right, abs=1e-3)


def test_a_sharded_model(online: dict[str, Any], right: list[float]) -> None:
    assert online["sharded"][0] == pytest.approx(right, abs=1e-5)


def test_a_cut_connection_goes_on(hub: Hub, online: dict[str, Any], right: list[float]) -> None:
    """By itself, or with a client older than 1.0 when it is asked again."""
    if int(huggingface_hub.__version__.partition(".")[0]) < 1:
        assert "ChunkedEncodingError" in online["cut"]
        assert "Check the name and the connection" in online["cut"]
    else:
        assert online["cut"] == online["cut, again"]
    assert online["cut, again"][0] == pytest.approx(right, abs=1e-5)
    asked = [path for method, path, _ in hub.asked if method == "GET" and path.startswith("/webis/cut/resolve/")]
    assert hub.cut["model.safetensors"] == []
    assert sum(path.endswith("/model.safetensors") for path in asked) == 2


def test_a_gated_model_is_a_clear_error(online: dict[str, Any]) -> None:
    assert online["gated"].startswith("CheckpointError: 'webis/gated' is not a folder here")
    assert "Access to model webis/gated is restricted" in online["gated"]
    assert "hf auth login" in online["gated"]
    assert online["missing"].startswith("CheckpointError: 'webis/nothing' is not a folder here")


def test_a_published_run_comes_through_the_client(hub: Hub, online: dict[str, Any], home: Path) -> None:
    assert online["run"] == [RUN.decode(), len(RUN)]
    assert (home / "runs" / "a.run").read_bytes() == RUN
    assert list(home.rglob("datasets--webis--rank-distillm"))
    assert "b.run could not be downloaded" in online["another run"]
    assert "the file there has MD5" in online["another run"]
    assert not (home / "runs" / "b.run").exists()
    assert {path for _, path, _ in hub.asked if "rank-distillm" in path} == {
        f"/datasets/webis/rank-distillm/resolve/main/{name}" for name in ("a.run", "b.run")
    }


def test_a_push_of_a_large_file(hub: Hub, online: dict[str, Any], right: list[float]) -> None:
    _, (sha, files) = hub.commits["me/mine"]  # the first is the hub's own
    assert online["push"] == f"{hub.address}/me/mine/commit/{sha}"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    (stored,) = hub.stored.items()
    assert stored == (hashlib.sha256(files["model.safetensors"]).hexdigest(), files["model.safetensors"])
    assert online["pushed"] == [pytest.approx(right, abs=1e-5), sha]
    assert all(isinstance(tensor, torch.Tensor) for tensor in load(files["model.safetensors"]).values())


def test_offline_what_the_cache_has_is_there_and_nothing_is_asked(
    hub: Hub, home: Path, online: dict[str, Any], right: list[float]
) -> None:
    before = len(hub.asked)
    (home / "runs" / "a.run").unlink()
    answers = ask(hub, home, {
        "main": ("scores", ["webis/whole"], {}),
        "run": ("fetch", ["a.run"], {}),
        "another": ("fetch", ["c.run"], {}),
        "missing": ("scores", ["webis/nothing"], {}),
    }, HF_HUB_OFFLINE="1")  # fmt: skip
    assert answers["main"] == [pytest.approx(right, abs=1e-5), online["main"][1]]
    assert answers["run"] == [RUN.decode(), None]
    assert "c.run could not be downloaded" in answers["another"]
    assert answers["missing"].startswith("CheckpointError: 'webis/nothing' is not a folder here")
    assert hub.asked[before:] == []
