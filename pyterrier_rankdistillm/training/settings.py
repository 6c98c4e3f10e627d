"""The settings of a training, checked, and the paper's recipe as named presets."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..checks import is_whole, whole
from ..errors import InputError
from ..extras import require
from ..scoring.scorer import DType
from .losses import Losses
from .sampling import Sampling, Strategy

Stage = Literal["finetune", "distill"]
Schedule = Literal["constant", "linear", "cosine"]
OnUnusable = Literal["error", "skip"]
Device = Literal["cuda", "cpu", "mps"]


TRACKERS = ("tensorboard", "wandb")
"""What a training can report to; each is the name of its package."""


def trackers_of(report_to: Any) -> tuple[Any, ...]:
    """The names in a setting ``report_to``."""
    if isinstance(report_to, str):
        return () if report_to == "none" else (report_to,)
    return tuple(report_to) if isinstance(report_to, Sequence) else (report_to,)


@dataclass(frozen=True)
class Rule:
    """What a setting must be.

    Args:
        words: The rule in words, after "must be"; empty where another part of the package checks the value.
        holds: Whether a value keeps it.
        whole: Whether it is about whole numbers, so that numpy's become Python's.
    """

    words: str
    holds: Callable[[Any], bool]
    whole: bool = False

    def or_none(self) -> Rule:
        """The same rule for a setting that may be None."""
        return replace(self, words=f"None or {self.words}", holds=lambda value: value is None or self.holds(value))


def _one_of(*choices: Any) -> Rule:
    return Rule(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def _number(value: Any) -> bool:
    return isinstance(value, float) or is_whole(value, least=0)


_COUNT = Rule("a whole number, at least 1", lambda value: is_whole(value, least=1), whole=True)
_FROM_ZERO = Rule("a whole number, at least 0", lambda value: is_whole(value, least=0), whole=True)
_POSITIVE = Rule("a number above 0", lambda value: _number(value) and 0 < value < math.inf)
_SHARE = Rule("a number from 0 to below 1", lambda value: _number(value) and 0 <= value < 1)
_SWITCH = Rule("True or False", lambda value: isinstance(value, bool))
_PATH = Rule("a path", lambda value: isinstance(value, str | os.PathLike) and bool(os.fspath(value)))
_TRACKED = Rule(
    f"'none', or one or several of {', '.join(map(repr, TRACKERS))}",
    lambda value: value == "none" or (bool(value) and set(trackers_of(value)) <= set(TRACKERS)),
)
_MADE = Rule("", lambda _: True)  # Losses, Sampling and ir-measures say what is wrong, when they are made of it


def _setting(default: Any, rule: Rule, told: str) -> Any:
    """A field that says what it means (in reStructuredText) and what it must be: checks, help and pages read it."""
    return field(default=default, metadata={"rule": rule, "told": told})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a training.

    Most defaults are the paper's. The exceptions are ``steps`` and ``epochs``, of which one must be given, and the
    settings in which the two stages differ; ``Settings.of`` takes these from a recipe.
    """

    loss: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = _setting(
        "ranknet",
        _MADE,
        "Name of a loss, or a mapping with ``name``, options and ``weight``, or several of them; see "
        "``training.losses``.",
    )
    depth: int | None = _setting(100, _COUNT.or_none(), "Number of documents per ranking that are used; None: all.")
    sample_size: int | None = _setting(
        None, _COUNT.or_none(), "Number of documents per training list; None: all within ``depth``."
    )
    sampling: Strategy = _setting(
        "top",
        _one_of(*get_args(Strategy)),
        'How these are chosen: ``"single_relevant"`` (one relevant, the rest not), ``"top"``, ``"random"``, '
        '``"log_random"`` (higher ranks more often), ``"top_and_random"``.',
    )
    negative_ranks: tuple[int, int] | None = _setting(
        None, _MADE, "Ranks (from 0, end not included) that non-relevant documents are drawn from; None: all."
    )
    random_negatives: float = _setting(
        0.0, _MADE, "Share of the non-relevant documents that come from other queries' rankings, 0 to 1."
    )
    add_relevant: bool = _setting(
        True, _SWITCH, "Whether relevant documents that the first stage did not retrieve are drawn too."
    )
    drop_near_duplicates: bool = _setting(
        True, _SWITCH, "Whether unjudged near-duplicates of a relevant passage are kept out of its list."
    )
    steps: int | None = _setting(None, _COUNT.or_none(), "Number of optimiser steps; None: set by ``epochs``.")
    epochs: float | None = _setting(
        None, _POSITIVE.or_none(), "Number of passes over the queries; None: set by ``steps``."
    )
    batch_size: int = _setting(
        32, _COUNT, "Number of lists per optimiser step, over all processes and accumulated parts."
    )
    accumulation: int = _setting(
        1,
        _COUNT,
        "Number of parts that an optimiser step is split into. Rarely needed, since ``memory_tokens`` already "
        "splits steps into parts that fit in memory.",
    )
    learning_rate: float = _setting(1e-5, _POSITIVE, "Learning rate of AdamW after the warm-up.")
    schedule: Schedule = _setting(
        "constant",
        _one_of(*get_args(Schedule)),
        'The learning rate after the warm-up: ``"constant"``, or falling to 0 at the last step, '
        '``"linear"``-ly or as a ``"cosine"``.',
    )
    warmup_steps: int = _setting(0, _FROM_ZERO, "Number of steps in which the learning rate rises from 0.")
    weight_decay: float = _setting(
        0.01, _SHARE, "Weight decay of AdamW, on every parameter (biases and LayerNorm too)."
    )
    max_grad_norm: float | None = _setting(
        None, _POSITIVE.or_none(), "Norm that larger gradients are scaled down to; None: they are not."
    )
    dropout: float | None = _setting(
        None, _SHARE.or_none(), "Dropout probability in all layers; None: the checkpoint's."
    )
    dtype: DType | None = _setting(
        None,
        _one_of(None, *get_args(DType)),
        '``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"``; None: bfloat16 on a GPU that supports it '
        "(CUDA capability 8.0 or above), float16 on an older one, float32 elsewhere.",
    )
    gradient_checkpointing: bool = _setting(
        False,
        _SWITCH,
        "Compute layers again for the gradient rather than keep them: a third slower, with a fraction of the memory.",
    )
    memory_tokens: int = _setting(
        16_384,
        _COUNT,
        "Number of tokens (padding included) whose activations are held at once. The backward pass is done in "
        "groups of lists of that size; a single larger list is encoded twice, with cached gradients (Gao et "
        "al., 2021, https://arxiv.org/abs/2101.06983). Gradients do not depend on it.",
    )
    batch_tokens: int | None = _setting(
        None,
        _COUNT.or_none(),
        "Number of tokens that the encoder reads at once; None: 512 on the CPU, ``memory_tokens`` elsewhere.",
    )
    query_length: int | None = _setting(
        None, _COUNT.or_none(), "Number of tokens read of a query; None: the checkpoint's."
    )
    doc_length: int | None = _setting(
        None, _COUNT.or_none(), "Number of tokens read of a text; None: the checkpoint's."
    )
    seed: int = _setting(42, _FROM_ZERO, "Of a new head, the sampling, the order of the queries, and dropout.")
    measure: str = _setting(
        "nDCG@10",
        _MADE,
        "Name of any measure of ir-measures. The weights with the best value on the validation topics are kept.",
    )
    valid_every: int | None = _setting(
        None, _COUNT.or_none(), "Number of steps between validations; None: a tenth of all steps."
    )
    valid_queries: int | None = _setting(
        None, _COUNT.or_none(), "Number of validation topics that are used, drawn with the seed; None: all."
    )
    patience: int | None = _setting(
        None,
        _COUNT.or_none(),
        "Number of validations without an improvement after which training stops; None: it does not stop early.",
    )
    log_every: int | None = _setting(
        None,
        _COUNT.or_none(),
        "Number of steps between two records of loss and learning rate; None: a hundredth of all steps.",
    )
    folder: str | os.PathLike[str] | None = _setting(
        None,
        _PATH.or_none(),
        "Folder in which checkpoints (and TensorBoard's logs) are kept, to be resumed; None: they are not kept.",
    )
    save_every: int | None = _setting(
        None, _COUNT.or_none(), "Number of steps between checkpoints in ``folder``; None: ``valid_every``."
    )
    resume: bool = _setting(False, _SWITCH, "Continue from the last checkpoint in ``folder``, if there is one.")
    on_unusable: OnUnusable = _setting(
        "error",
        _one_of(*get_args(OnUnusable)),
        "What is done with queries that cannot be trained on (no relevant document, not in the teacher's run, "
        '...): ``"error"`` lists them, ``"skip"`` leaves them out and counts them.',
    )
    device: Device | None = _setting(
        None,
        _one_of(None, *get_args(Device)),
        '``"cuda"`` (``CUDA_VISIBLE_DEVICES`` chooses one of several), ``"cpu"`` or ``"mps"``; None: CUDA if '
        "available, else the CPU.",
    )
    report_to: str | Sequence[str] = _setting(
        "none",
        _TRACKED,
        'Where the loss and the validation measure are reported, besides the record: ``"tensorboard"`` (into '
        '``folder``), ``"wandb"`` (Weights & Biases, set up by its own environment variables), a list of these, or '
        '``"none"``. They must be installed.',
    )
    verbose: bool | None = _setting(
        None,
        _SWITCH.or_none(),
        "Show a progress bar, and print the summary at the end; None: the bar in a terminal or a notebook only.",
    )
    who: InitVar[str] = "Settings"

    def __post_init__(self, who: str) -> None:
        for name, rule in _RULES.items():
            if rule.whole:
                object.__setattr__(self, name, whole(getattr(self, name)))  # numpy's numbers too
        if isinstance(self.negative_ranks, tuple | list):
            object.__setattr__(self, "negative_ranks", tuple(map(whole, self.negative_ranks)))  # YAML has lists
        faults = [*self._range_faults(), *self._contradictions()]
        if not faults:
            made = (_complaint(make) for make in (lambda: Losses.of(self.loss), self.to_sampling, self._check_measure))
            faults = [complaint for complaint in made if complaint]
        if faults:
            raise ValueError(f"{who}: " + " ".join(faults))

    @classmethod
    def of(
        cls, stage: Stage, recipe: str | os.PathLike[str] | None = None, *, who: str = "Settings", **changes: Any
    ) -> Settings:
        """The settings of a recipe, with changes.

        Args:
            stage: ``"finetune"`` or ``"distill"``.
            recipe: ``"rank-distillm"`` (the default), or a YAML file with settings (and, for what it does not say, the
                name of a recipe under ``recipe``).
            who: The function that messages name.
            **changes: Settings that overrule the recipe's. ``steps`` overrules a recipe's ``epochs`` and the reverse.

        Raises:
            ValueError: Settings or recipes are unknown, or settings contradict each other. The message names all of
                them.
        """
        values = _values_of(stage, recipe, who)
        unknown = sorted({*values, *changes} - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{who}: " + " ".join(no_setting(name) for name in unknown))
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(one) is not None and other not in changes:
                values[other] = None
        return cls(who=who, **{**values, **changes})

    def to_sampling(self) -> Sampling:
        """The part of the settings that decides which documents of a ranking a list contains."""
        return Sampling(
            strategy=self.sampling,
            sample_size=self.sample_size,
            depth=self.depth,
            negative_ranks=self.negative_ranks,
            random_negatives=self.random_negatives,
            add_relevant=self.add_relevant,
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """What the training reports to."""
        return trackers_of(self.report_to)

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        values = dataclasses.asdict(self)
        return values | {
            "folder": None if self.folder is None else os.fspath(self.folder),
            "negative_ranks": None if self.negative_ranks is None else list(self.negative_ranks),
        }

    def total_steps(self, queries: int) -> int:
        """The number of optimiser steps of a training on that many queries."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * queries / self.batch_size))

    def _range_faults(self) -> list[str]:
        values = ((name, getattr(self, name), rule) for name, rule in _RULES.items())
        return [f"{name} must be {rule.words}, got {value!r}." for name, value, rule in values if not rule.holds(value)]

    def _contradictions(self) -> list[str]:
        faults = []
        if (self.steps is None) == (self.epochs is None):
            faults.append(
                f"Exactly one of steps and epochs must be given, got steps={self.steps!r} and epochs={self.epochs!r}."
            )
        countable = is_whole(self.batch_size, least=1) and is_whole(self.accumulation, least=1)
        if countable and self.batch_size % self.accumulation:
            faults.append(
                f"batch_size must be a multiple of accumulation, got batch_size={self.batch_size} and "
                f"accumulation={self.accumulation}."
            )
        if self.folder is None:
            needing: dict[str, Any] = {"resume": self.resume, "save_every": self.save_every}
            if "tensorboard" in self.trackers:
                needing["report_to"] = self.report_to
            faults += [f"{name}={value!r} needs a folder." for name, value in needing.items() if value]
        if self.save_every and self.valid_every and self.save_every % self.valid_every:
            # The best weights are taken from a checkpoint, so each checkpoint needs a validation.
            faults.append(
                f"save_every must be a multiple of valid_every, got {self.save_every} and {self.valid_every}."
            )
        return faults

    def _check_measure(self) -> None:
        import ir_measures  # slow to load, and only needed here

        try:
            ir_measures.parse_measure(self.measure)
        except (NameError, ValueError, SyntaxError, TypeError) as error:
            fact = f"measure must be the name of an ir-measures measure, got {self.measure!r}."
            raise InputError("Settings", fact) from error


_RULES: dict[str, Rule] = {one.name: one.metadata["rule"] for one in dataclasses.fields(Settings)}

if Settings.__doc__ is not None:  # python -OO keeps none
    _told = (f"    {one.name}: {one.metadata['told']}" for one in dataclasses.fields(Settings))
    Settings.__doc__ = "\n".join([inspect.cleandoc(Settings.__doc__), "", "Args:", *_told])


def descriptions() -> dict[str, str]:
    """What each setting means, in a line of plain text."""
    return {one.name: one.metadata["told"].replace("``", "") for one in dataclasses.fields(Settings)}


_ELSEWHERE = {
    "lr": "learning_rate",
    "max_length": "doc_length (of a text; query_length of a query)",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "warmup": "warmup_steps",
    "gradient_accumulation_steps": "accumulation",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "mini_batch_size": "memory_tokens",
    "bf16": "dtype='bfloat16'",
    "fp16": "dtype='float16'",
    "output_dir": "folder",
    "num_negatives": "sample_size (negatives and the relevant one together)",
    "lr_scheduler_type": "schedule",
    "tensorboard": "report_to='tensorboard'",
    "logging_steps": "log_every",
    "eval_steps": "valid_every",
    "save_steps": "save_every",
}
"""Settings by what transformers and Sentence Transformers call them."""


def no_setting(name: str) -> str:
    """What to say of a setting that there is not, with what was probably meant."""
    known = [f.name for f in dataclasses.fields(Settings)]
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = _ELSEWHERE.get(name) or (close[0] if close else None)
    if meant:
        return f"there is no setting {name!r}. Did you mean {meant}?"
    return f"there is no setting {name!r}. There are: {', '.join(known)}."


def _complaint(make: Callable[[], object]) -> str | None:
    try:
        make()
    except InputError as error:
        return error.fact
    return None


_SHARED = {
    "batch_size": 32,
    "learning_rate": 1e-5,
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "query_length": 32,
    "doc_length": 256,
    "seed": 42,
}
RECIPES: dict[str, dict[Stage, dict[str, Any]]] = {
    # Schlatt et al., Rank-DistiLLM, ECIR 2025, https://arxiv.org/abs/2405.07920, with the values of the settings files
    # that the authors released for webis/monoelectra-base and -large (there in bf16 mixed precision on a GPU).
    "rank-distillm": {
        # One relevant passage against 7 of ColBERTv2's top 200; relevant passages that it did not retrieve are added.
        "finetune": {
            **_SHARED,
            "loss": "lce",
            "depth": 200,
            "sample_size": 8,
            "sampling": "single_relevant",
            "add_relevant": True,
            "drop_near_duplicates": False,
            "steps": 20_000,
        },
        # The 100 passages of ColBERTv2 that RankZephyr ordered, for each of 10,000 queries. The paper's other loss is
        # "adr_mse".
        "distill": {
            **_SHARED,
            "loss": "ranknet",
            "depth": 100,
            "sample_size": None,
            "sampling": "top",
            "epochs": 3,
        },
    },
}
DEFAULT_RECIPE = "rank-distillm"


def _values_of(stage: Stage, recipe: str | os.PathLike[str] | None, who: str) -> dict[str, Any]:
    name = DEFAULT_RECIPE if recipe is None else os.fspath(recipe)
    if name in RECIPES:
        return dict(RECIPES[name][stage])
    if Path(name).suffix not in (".yaml", ".yml"):
        raise ValueError(f"{who}: recipe must be one of {', '.join(RECIPES)}, or a YAML file, got {name!r}.")
    values = _read_yaml(Path(name), who)
    base = values.pop("recipe", None)
    if base is not None and base not in RECIPES:
        raise ValueError(f"{who}: {name}: recipe must be one of {', '.join(RECIPES)}, got {base!r}.")
    inherited = dict(RECIPES[base or DEFAULT_RECIPE][stage])
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if values.get(one) is not None:
            inherited.pop(other, None)
    return inherited | values


def _read_yaml(file: Path, who: str) -> dict[str, Any]:
    try:
        values = parsed(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{who}: {file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{who}: {file} must hold settings as `name: value` lines, got {type(values).__name__}.")
    return values


def parsed(text: str) -> Any:
    """A setting, or several, written in YAML.

    Raises:
        ValueError: It is not YAML.
    """
    yaml = require("yaml", "Reading settings in YAML")
    try:
        return _with_numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}.") from error


def _with_numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-5 for a string."""
    if isinstance(value, dict):
        return {name: _with_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+([.]\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
