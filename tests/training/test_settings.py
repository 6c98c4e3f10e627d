"""Settings: ranges, contradictions, recipes, YAML; all that is wrong is said at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pyterrier_rankdistillm.training.settings import RECIPES, Settings, descriptions, parsed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "settings"
STEPS = {"steps": 10}

_COUNTS = (
    "sample_size", "steps", "batch_size", "memory_tokens", "batch_tokens", "query_length", "doc_length", "valid_every",
    "valid_queries", "patience", "log_every", "depth", "accumulation", "save_every",
)  # fmt: skip
_SWITCHES = ("add_relevant", "drop_near_duplicates", "gradient_checkpointing", "resume")
OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, value) for name in _COUNTS for value in (0, -1, 1.0, 2.5, "3", True)),
    *((name, value) for name in ("warmup_steps", "seed") for value in (-1, 1.5, "3", None, False)),
    *((name, value) for name in ("epochs", "learning_rate", "max_grad_norm") for value in (0, -1e-5, "1e-5", True)),
    *((name, value) for name in ("weight_decay", "dropout") for value in (-0.1, 1, 1.5, "0.1", True)),
    *((name, float("nan")) for name in ("epochs", "learning_rate", "weight_decay")),
    *((name, float("inf")) for name in ("epochs", "learning_rate", "max_grad_norm")),
    *((name, None) for name in ("batch_size", "accumulation", "learning_rate", "weight_decay", "memory_tokens")),
    *((name, value) for name in _SWITCHES for value in (None, 0, 1, "yes")),
    *(("verbose", value) for value in (0, 1, "yes")),
    *((name, "other") for name in ("sampling", "schedule", "dtype", "on_unusable", "device")),
    *((name, None) for name in ("sampling", "schedule", "on_unusable")),
    *(("measure", value) for value in ("nDCG@", "no such", "", "__import__('os')", None, 3)),
    *(("loss", value) for value in ("crossentropy", [], None, {"name": "lce", "scale": 2}, ["lce", 5])),
    *(("negative_ranks", value) for value in ((5, 5), (-1, 3), (1, 2, 3), 7, "ab", (1.0, 2.0))),
    ("random_negatives", 1.5),
    ("random_negatives", -0.5),
    ("random_negatives", "half"),
    ("sample_size", 1),
    *(("report_to", value) for value in ("no such", "all", None, [], ["none"], ["wandb", 1], True)),
    ("folder", 5),
    ("folder", ""),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE, ids=lambda value: repr(value)[:24])
def test_ranges(name: str, value: Any) -> None:
    values = {"folder": "somewhere", "sampling": "single_relevant", **({} if name == "epochs" else STEPS), name: value}
    with pytest.raises(ValueError, match=r"^Settings: .*got .+\.$") as caught:
        Settings(**values)
    said = str(caught.value)
    assert any(word in said for word in (f"{name} must be", "name of a loss must be", "option of ", "weight of ")), said
    assert "Error" not in said


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0.5, "steps": None},
        {"weight_decay": 0, "dropout": 0, "max_grad_norm": 1},
        {"depth": None, "sample_size": None, "sampling": "single_relevant", "negative_ranks": (5, 50)},
        {"measure": "P(rel=2)@5", "loss": ["lce", {"name": "adr_mse", "weight": 0.5}]},
        {"device": "cpu", "dtype": "bfloat16", "seed": 0, "warmup_steps": 5, "schedule": "cosine"},
        {
            "folder": Path("a"),
            "resume": True,
            "report_to": ["tensorboard", "wandb"],
            "save_every": 20,
            "valid_every": 10,
        },
    ],
)
def test_what_is_in_range(values: dict[str, Any]) -> None:
    made = Settings(**{**STEPS, **values})
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "Exactly one of steps and epochs must be given, got steps=None and epochs=None."),
        ({"steps": 1, "epochs": 2}, "got steps=1 and epochs=2."),
        ({**STEPS, "batch_size": 32, "accumulation": 3}, "got batch_size=32 and accumulation=3."),
        ({**STEPS, "resume": True}, "resume=True needs a folder."),
        ({**STEPS, "save_every": 5}, "save_every=5 needs a folder."),
        ({**STEPS, "report_to": "tensorboard"}, "report_to='tensorboard' needs a folder."),
        ({**STEPS, "folder": "a", "save_every": 5, "valid_every": 2}, "a multiple of valid_every, got 5 and 2."),
        ({**STEPS, "sampling": "random"}, "sample_size must be given with strategy 'random', got None."),
        ({**STEPS, "random_negatives": 0.5}, "random_negatives must be 0 with strategy 'top', got 0.5."),
        ({**STEPS, "sample_size": 9, "depth": 8}, "sample_size must be at most the depth, 8, got 9."),
        ({**STEPS, "negative_ranks": (5, 101)}, "negative_ranks must end at depth, 100, at most, got (5, 101)."),
    ],
)
def test_contradictions(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^Settings: ") as caught:
        Settings(**values)
    assert complaint in str(caught.value)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"^Settings: ") as caught:
        Settings(steps=0, epochs=1, seed=-1, schedule="steep", resume=True, dropout=1.0)  # type: ignore[arg-type]
    for complaint in ("steps must be", "seed must be", "schedule must be", "resume=True", "dropout must be", "Exactly"):
        assert complaint in str(caught.value)
    with pytest.raises(ValueError, match=r"^Settings: ") as caught:
        Settings(steps=1, loss="nothing", measure="nothing", sampling="random")
    for complaint in ("name of a loss", "measure must be", "sample_size must"):
        assert complaint in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"no setting 'batchsize'. Did you mean batch_size\? there is no setting 'lr'. Did"
    ) as caught:
        Settings.of("distill", lr=1, batchsize=2)
    with pytest.raises(ValueError, match=r"there is no setting 'zzz'\. There are: loss, depth, ") as caught:
        Settings.of("distill", zzz=1)
    assert all(field.name in str(caught.value) for field in dataclasses.fields(Settings))
    with pytest.raises(ValueError, match=r"recipe must be one of rank-distillm, or a YAML file, got 'rank-distill'\."):
        Settings.of("distill", "rank-distill")


# --- recipes ---

PAPER = {
    "batch_size": 32,
    "accumulation": 1,
    "learning_rate": 1e-5,
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "dropout": None,
    "query_length": 32,
    "doc_length": 256,
    "seed": 42,
    "random_negatives": 0.0,
    "negative_ranks": None,
}
STAGE_1 = {
    **PAPER,
    "loss": "lce",
    "depth": 200,
    "sample_size": 8,
    "sampling": "single_relevant",
    "add_relevant": True,
    "drop_near_duplicates": False,
    "steps": 20_000,
    "epochs": None,
}
STAGE_2 = {
    **PAPER,
    "loss": "ranknet",
    "depth": 100,
    "sample_size": None,
    "sampling": "top",
    "steps": None,
    "epochs": 3,
}


STUDY = {
    "dtype": "bfloat16", "epochs": 8, "batch_size": 4, "learning_rate": 1e-4, "schedule": "linear", "warmup_steps": 10,
    "max_grad_norm": 1.0, "doc_length": 128, "dropout": 0.0,
}  # fmt: skip
"""What benchmarks/distillation.py trains its second stage with."""


@pytest.mark.parametrize(("stage", "values"), [("finetune", STAGE_1), ("distill", STAGE_2)])
@pytest.mark.parametrize("recipe", [None, "rank-distillm"])
def test_the_papers_values(stage: Any, values: dict[str, Any], recipe: str | None) -> None:
    made = Settings.of(stage, recipe).as_dict()
    assert {name: made[name] for name in values} == values


def test_a_recipe_names_every_value_that_the_paper_states() -> None:
    stated = set(PAPER) - {"accumulation", "dropout", "random_negatives", "negative_ranks"}
    for stage in ("finetune", "distill"):
        assert stated <= set(RECIPES["rank-distillm"][stage])  # type: ignore[index]


@pytest.mark.parametrize(
    ("file", "stage", "values", "differs"),
    [
        ("rank-distillm-finetune", "finetune", STAGE_1, {"dtype": "bfloat16"}),
        ("rank-distillm-distill", "distill", STAGE_2, {"dtype": "bfloat16", "sample_size": 100}),
        ("seed-finetune", "finetune", STAGE_1, {"dtype": "bfloat16", "accumulation": 2, "add_relevant": False}),
        ("seed-distill", "distill", STAGE_2, {"dtype": "bfloat16", "accumulation": 32, "sample_size": 100}),
        ("set-encoder-distill", "distill", STAGE_2, {"dtype": "bfloat16", "depth": 50, "epochs": 1}),
        ("study-distill", "distill", STAGE_2, STUDY),
    ],
)
def test_the_examples_equal_the_recipe_but_for_what_they_say(
    file: str, stage: Any, values: dict[str, Any], differs: dict[str, Any]
) -> None:
    made = Settings.of(stage, EXAMPLES / f"{file}.yaml")
    assert made == dataclasses.replace(Settings.of(stage), **differs)
    assert {name: made.as_dict()[name] for name in values} == values | {k: v for k, v in differs.items() if k in values}


def test_every_example_is_tested() -> None:
    stages = ("rank-distillm-distill", "rank-distillm-finetune", "seed-distill", "seed-finetune",
              "set-encoder-distill", "study-distill")  # fmt: skip
    assert [file.stem for file in sorted(EXAMPLES.iterdir())] == list(stages)


# --- YAML ---


def recipe_file(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_yaml_on_top_of_a_recipe(tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path,
        "recipe: rank-distillm\nlearning_rate: 1e-5\nweight_decay: 1E-2\nmax_grad_norm: 1.5e+0\n"
        "loss:\n- ranknet\n- {name: adr_mse, weight: 5e-1}\nnegative_ranks: [10, 90]\ndropout: null\n",
    )
    made = Settings.of("distill", file)
    assert (made.learning_rate, made.weight_decay, made.max_grad_norm) == (1e-5, 0.01, 1.5)
    assert made.loss == ["ranknet", {"name": "adr_mse", "weight": 0.5}]
    assert made.as_dict()["negative_ranks"] == [10, 90]
    assert (made.epochs, made.depth) == (3, 100)
    assert Settings.of("distill", str(file)) == made
    assert Settings.of("distill", file, learning_rate=3e-5, loss="list_mle").learning_rate == 3e-5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps: [", "settings.yaml cannot be read: not YAML: "),
        ("- steps", "must hold settings as `name: value` lines, got list"),
        ("recipe: other", "settings.yaml: recipe must be one of rank-distillm, got 'other'"),
        ("lr: 1", "there is no setting 'lr'"),
        ("5: 1", "there is no setting 5"),
        ("steps: 1\nepochs: 2", "Exactly one of steps and epochs"),
        ("seed: one", "seed must be a whole number, at least 0, got 'one'"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^Settings: ") as caught:
        Settings.of("finetune", recipe_file(tmp_path, text))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Settings: .*none.yaml cannot be read: .*No such file"):
        Settings.of("finetune", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5", 5),
        ("0.5", 0.5),
        ("null", None),
        ("true", True),
        ("[5, 1e2]", [5, 100.0]),
        ("a1e5", "a1e5"),
    ],
)
def test_parsed(text: str, value: Any) -> None:
    assert parsed(text) == value
    assert type(parsed(text)) is type(value)


# --- steps and epochs ---


@pytest.mark.parametrize(
    ("stage", "changes", "steps", "epochs"),
    [
        ("finetune", {}, 20_000, None),
        ("finetune", {"epochs": 2}, None, 2),
        ("distill", {}, None, 3),
        ("distill", {"steps": 5}, 5, None),
        ("distill", {"steps": None, "epochs": 0.5}, None, 0.5),
    ],
)
def test_steps_overrule_epochs_and_the_reverse(
    stage: Any, changes: dict[str, Any], steps: int | None, epochs: float | None, tmp_path: Path
) -> None:
    made = Settings.of(stage, **changes)
    assert (made.steps, made.epochs) == (steps, epochs)
    lines = "".join(f"{name}: {'null' if value is None else value}\n" for name, value in changes.items())
    assert Settings.of(stage, recipe_file(tmp_path, lines)) == made


def test_both_steps_and_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="got steps=5 and epochs=1"):
        Settings.of("distill", steps=5, epochs=1)


@pytest.mark.parametrize(
    ("queries", "epochs", "batch_size", "steps"),
    [(10_000, 3, 32, 938), (10, 1, 4, 2), (11, 1, 4, 3), (1, 1, 32, 1), (64, 0.5, 32, 1)],
)
def test_epochs_as_steps(queries: int, epochs: float, batch_size: int, steps: int) -> None:
    assert Settings(epochs=epochs, batch_size=batch_size).total_steps(queries) == steps
    assert Settings(steps=7).total_steps(queries) == 7


def test_every_setting_is_described() -> None:
    told = descriptions()
    assert list(told) == [field.name for field in dataclasses.fields(Settings)]
    assert all(text.endswith(".") and "\n" not in text and "``" not in text for text in told.values())
    assert told["seed"] == "Of a new head, the sampling, the order of the queries, and dropout."
