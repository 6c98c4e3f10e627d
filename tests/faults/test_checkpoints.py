"""Checkpoints, also of trainings, with something wrong: refused by name, passed over with a warning, or whole."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import pytest
import tiny
import toy
import works
from conftest import Rounds

from pyterrier_rankdistillm import Checkpoint, CheckpointError

FRAME = toy.RUN.head(6)


def cut(folder: Path, rng: random.Random) -> None:
    file = folder / rng.choice(("config.json", "model.safetensors", "tokenizer.json"))
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def head(folder: Path, rng: random.Random) -> None:
    """A byte of the tensors' header is changed."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[rng.randrange(8 + int.from_bytes(data[:8], "little"))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def gone(folder: Path, rng: random.Random) -> None:
    (folder / rng.choice(("config.json", "model.safetensors"))).unlink()


def empty(folder: Path, rng: random.Random) -> None:
    (folder / rng.choice(("config.json", "model.safetensors", "tokenizer.json"))).write_bytes(b"")


def no_object(folder: Path, rng: random.Random) -> None:
    (folder / "config.json").write_text(rng.choice(("[]", "null", "7", '"x"', "{", "NaN")))


def tensor_gone(folder: Path, rng: random.Random) -> None:
    state = tiny.load_state(folder)
    state.pop(rng.choice(sorted(state)))
    tiny.save_state(folder, state)


def tensor_cut(folder: Path, rng: random.Random) -> None:
    state = tiny.load_state(folder)
    name = rng.choice(sorted(name for name in state if state[name].ndim and "position_ids" not in name))
    tiny.save_state(folder, state | {name: state[name][:-1].contiguous()})


class Code:
    """What runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def code(folder: Path, rng: random.Random) -> None:
    del rng
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code(folder / "ran")}))


def shard_outside(folder: Path, rng: random.Random) -> None:
    names = sorted(tiny.load_state(folder))
    index = {
        "weight_map": dict.fromkeys(names, rng.choice(("../x.safetensors", "/etc/hostname", "nowhere.safetensors")))
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD: dict[str, Callable[[Path, random.Random], None]] = {
    f.__name__: f for f in (cut, head, gone, empty, no_object, tensor_gone, tensor_cut, code, shard_outside)
}


def test_a_bad_checkpoint(checkpoint: Callable[[str], tiny.Tiny], rounds: Rounds, tmp_path: Path) -> None:
    good = checkpoint("lightning-ir-hub").folder
    right = works.Works(good, good).reranker()(FRAME)["score"].tolist()

    for number, kind in enumerate(rounds.of(*BAD)):
        folder = tiny.copy(good, tmp_path / str(number))
        BAD[kind](folder, rounds.random)
        try:
            scores = works.Works(folder, folder).reranker()(FRAME)["score"].tolist()
        except CheckpointError as error:
            told, scores = str(error), right
            rounds.hit(kind)
        else:  # what was changed does not matter, such as a space in the header
            told = str(folder)
        assert str(folder) in told
        assert scores == pytest.approx(right, abs=1e-5)
        assert not (folder / "ran").exists()
        shutil.rmtree(folder)


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def remove(file: Path, rng: random.Random) -> None:
    del rng
    file.unlink()


DAMAGE = {f.__name__: f for f in (flip, truncate, remove)}
FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json", "complete.json", "scheduler.pt", "rng_state.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_of_a_training(
    checkpoint: Callable[[str], tiny.Tiny], rounds: Rounds, tmp_path: Path
) -> None:
    """The training goes on from the one before, to the same weights."""
    model = checkpoint("lightning-ir-hub").folder
    work = works.Works(model, model)
    (tmp_path / "right").mkdir()
    value = child.run(works.of(work, "fit", tmp_path / "right")).value

    for number, kind in enumerate(rounds.of(*DAMAGE)):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "right", folder)
        training = folder / "training"
        last = max(training.glob("checkpoint-*"), key=lambda path: path.name)
        DAMAGE[kind](last / rounds.random.choice(FILES), rounds.random)

        def resumed(folder: Path = folder) -> tuple[Any, list[str]]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return work.fit(folder), [str(warning.message) for warning in caught]

        ended = child.run(resumed)
        assert ended.error is None, ended.error
        found, told = ended.value
        assert found == value
        if any(f"continues not from {last.name} but" in one for one in told):
            rounds.hit(kind)
        shutil.rmtree(folder)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_checkpoint_is_replaced_in_one_step(
    exchange: bool,
    checkpoint: Callable[[str], tiny.Tiny],
    rounds: Rounds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed at any step, the folder opens as the old one or as the new one; also where it takes two renames."""
    from pyterrier_rankdistillm import scratch

    if not exchange:
        monkeypatch.setattr(scratch, "_exchanged", lambda *_: False)
    old, new = checkpoint("lightning-ir-hub"), checkpoint("lightning-ir-hub-bias")
    target = tmp_path / "checkpoint"
    for kind in rounds.of("old", "new"):
        shutil.rmtree(target, ignore_errors=True)
        Checkpoint.open(old.folder).save(target)
        ended = child.run(
            lambda: Checkpoint.open(new.folder).save(target) and None, kill_at_step=rounds.random.randrange(1, 24)
        )
        assert ended.error is None
        opened = Checkpoint.open(target)
        biased = opened.encoder.linear.bias is not None
        if ended.killed:
            rounds.hit("new" if biased else "old")
        del kind
        Checkpoint.open(new.folder).save(target)
        assert works.litter(tmp_path) == []
