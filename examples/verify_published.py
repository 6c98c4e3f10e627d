"""Verifies this package against what was published, wherever the Hugging Face hub and the data can be had.

    python examples/verify_published.py                  # golden scores, then TREC DL over Terrier's BM25 (needs Java)
    python examples/verify_published.py --first-stage "colbertv2=runs/{task}.run.gz"
    python examples/verify_published.py --no-tables      # golden scores only: a minute

First the scores that a model's card states are computed and compared; then the cells of the TREC DL tables are
reproduced, first stage by first stage. What cannot be had here is left out, and said. verification/verification.html
(to look at) and verification.json (to attach to an issue) say what was measured, with models, commits, versions and
hardware; of local paths they hold the last name only.

Exit status: 0 if all that was published agrees, 1 if something differs, 3 if nothing differs but something was not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_rankdistillm import MonoElectra, Reproduction, reproduce
from pyterrier_rankdistillm.errors import RankDistillmError
from pyterrier_rankdistillm.runs.atomic import replacing
from pyterrier_rankdistillm.runs.records import hardware, public, versions

GOLDEN = [
    {
        "model": "cross-encoder/monoelectra-base",
        "source": "the example of https://huggingface.co/cross-encoder/monoelectra-base",
        "query": "How many people live in Berlin?",
        "passages": [
            [
                "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
                8.122868,
            ],
            ["Berlin is well known for its museums.", -4.292924],
        ],
    }
]
TOLERANCE = 1e-3
"""Of golden scores: kernels of different hardware sum in different orders."""
MODELS = ["webis/monoelectra-base", "webis/monoelectra-large"]
TASKS = ["trec-dl-2019", "trec-dl-2020"]
FAULTS = (RankDistillmError, OSError, KeyError, ValueError, ImportError, RuntimeError)


def golden(stated: list[dict[str, Any]], device: str | None) -> Iterator[dict[str, Any]]:
    """The scores that cards state, beside those that are computed here."""
    for one in stated:
        about = {"model": one["model"], "source": one["source"]}
        try:
            reranker = MonoElectra(one["model"], device=device)
            found = reranker.rank(one["query"], [text for text, _ in one["passages"]]).sort_values("docno")["score"]
        except FAULTS as error:
            yield {**about, "status": "not run", "why": f"{type(error).__name__}: {error}"}
            continue
        for (text, expected), score in zip(one["passages"], found.tolist(), strict=True):
            agrees = abs(score - expected) <= TOLERANCE
            yield {
                **about, "commit": reranker.checkpoint.revision, "query": one["query"], "passage": text,
                "published": expected, "measured": round(score, 6), "difference": round(score - expected, 6),
                "status": "reproduced" if agrees else "differs",
            }  # fmt: skip


def tables(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Reproduction | None]]:
    """The cells of each task and first stage; what could not be run says why."""
    for task in args.task:
        for given in args.first_stage:
            name, _, source = given.rpartition("=")
            about = {"task": task, "first stage": name or source}
            systems = {model: MonoElectra(model, device=args.device) for model in args.model}
            try:
                stage = {name: source.replace("{task}", task)} if name else source
                result = reproduce(task, systems, first_stage=stage, topics=args.dataset, qrels=args.dataset,
                                   text=args.dataset, folder=args.folder, verbose=True)  # fmt: skip
            except FAULTS as error:
                yield {**about, "status": "not run", "why": f"{type(error).__name__}: {error}"}, None
                continue
            rows = result.comparison[result.comparison["status"] != "not run"]
            cells = rows.astype(object).where(rows.notna(), None).to_dict("records")
            yield {**about, "agrees": result.agrees, "cells": cells, "notes": list(result.notes)}, result


def table(rows: pd.DataFrame, digits: int) -> str:
    """Rows in HTML, without what is empty; long texts get room."""

    def cell(value: Any) -> str:
        text = "" if pd.isna(value) else f"{value:.{digits}f}" if isinstance(value, float) else escape(str(value))
        return f'<div class="long">{text}</div>' if len(text) > 40 else text

    used = rows.loc[:, (rows.notna() & (rows != "")).any()]
    return used.apply(lambda column: column.map(cell)).to_html(index=False, border=0, escape=False)


def page(content: dict[str, Any], results: list[Reproduction | None]) -> str:
    """The same to look at."""
    parts = ["<h2>Golden scores</h2>"]
    if ran := [one for one in content["golden"] if one["status"] != "not run"]:
        parts.append(table(pd.DataFrame(ran), 6))
    parts += [
        f"<p>{escape(one['model'])}: not run. {escape(one['why'])}</p>"
        for one in content["golden"]
        if one["status"] == "not run"
    ]
    for one, result in zip(content["tables"], results, strict=True):
        parts.append(f"<h2>{escape(one['task'])}, {escape(one['first stage'])}</h2>")
        if result is None:
            parts.append(f"<p>Not run. {escape(one['why'])}</p>")
            continue
        shown = ["setting", "system", "measured", "paper", "difference", "status", "reason"]
        compared = result.comparison[result.comparison["status"] != "not run"][shown]
        parts.append(result._repr_html_() + table(compared, 4))
    made = escape(json.dumps({name: content[name] for name in ("versions", "hardware")}, indent=1))
    style = (
        ":root{color-scheme:light dark}"
        "body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1rem}"
        "table{max-width:100%;overflow-x:auto;border-collapse:collapse;display:block;font-size:.9rem}"
        "th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #8886;vertical-align:top}"
        ".long{min-width:16rem} p{max-width:60rem} pre{overflow-x:auto;font-size:.8rem}"
    )
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Verification</title><style>{style}</style><h1>Verification: {escape(content['verdict'])}</h1>"
        f"{''.join(parts)}<h2>Made with</h2><pre>{made}</pre></html>"
    )


def verdict(content: dict[str, Any]) -> tuple[str, int]:
    """What it comes to, and the exit status."""
    statuses = [one["status"] for one in content["golden"]]
    statuses += [cell["status"] for one in content["tables"] for cell in one.get("cells", [one])]
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    if "differs" in counts:
        return f"something differs ({counted})", 1
    if "not run" in counts:
        return f"nothing differs, but not all was run ({counted})", 3
    return f"it agrees ({counted})", 0


def main(arguments: list[str] | None = None) -> int:
    """Verifies, writes both files, prints the verdict."""
    parser = argparse.ArgumentParser(description="Verifies this package against what was published.")
    parser.add_argument("--out", type=Path, default=Path("verification"), help="folder to write (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="folder that runs are kept in, so that a stopped call goes on")
    parser.add_argument("--model", action="append", help=f"system of the tables (default: {', '.join(MODELS)})")
    parser.add_argument("--task", action="append", help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--first-stage", action="append",
                        help='"bm25" (the default; Java), or NAME=RUN with {task} in the file name')  # fmt: skip
    parser.add_argument("--dataset", help="where topics, labels and passages come from (default: the task's own)")
    parser.add_argument("--golden", type=Path, help="JSON of golden scores, in the form of GOLDEN in this file")
    parser.add_argument("--no-tables", action="store_true", help="golden scores only")
    parser.add_argument("--device", help="torch device")
    args = parser.parse_args(arguments)
    args.model, args.task = args.model or MODELS, args.task or TASKS
    args.first_stage = args.first_stage or ["bm25"]
    stated = GOLDEN if args.golden is None else json.loads(args.golden.read_text(encoding="utf-8"))
    content: dict[str, Any] = {"golden": list(golden(stated, args.device))}
    found = [] if args.no_tables else list(tables(args))
    content["tables"] = [one for one, _ in found]
    content |= {"versions": versions(), "hardware": hardware()}
    content["verdict"], status = verdict(content)
    content = public(content)
    written = {"json": json.dumps(content, indent=1), "html": page(content, [result for _, result in found])}
    for suffix, text in written.items():
        with replacing((args.out / f"verification.{suffix}").absolute()) as scratch:
            scratch.write_text(text, encoding="utf-8")
    print(f"{content['verdict']}; see {args.out / 'verification.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
