"""Reproduces the paper's tables.

    python examples/reproduce.py demo                # runs anywhere, in a minute; has no published values
    python examples/reproduce.py trec-dl --first-stage 'bm25=bm25.{task}.run.gz' 'colbertv2=colbert.{task}.run.gz'
    python examples/reproduce.py tirex --first-stage 'runs/{task}.run.gz'          # or: --first-stage tira

The last two need MS MARCO or TIREx's corpora (ir_datasets downloads or describes them), the webis checkpoints, and a
GPU. We have not run them.
"""

from __future__ import annotations

import argparse

import pyterrier as pt

from pyterrier_rankdistillm import MonoElectra, Reproduction, reproduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["demo", "trec-dl", "tirex"])
    parser.add_argument("--first-stage", nargs="+", default=["tira"], help="run files: NAME=FILE, or FILE")
    parser.add_argument("--folder", help="keep runs and results here, and continue where a call stopped")
    parser.add_argument("--html", help="write the report here")
    args = parser.parse_args()

    result = demo(args.folder) if args.table == "demo" else paper(args.table, args.first_stage, args.folder)
    print(result)
    if args.html:
        result.to_html(args.html)


def demo(folder: str | None) -> Reproduction:
    """The demo collection, without published values; any collection can be evaluated in the same way."""
    first_stage = pt.get_dataset("rankdistillm:demo").get_results()
    systems = {"demo": MonoElectra("rankdistillm:demo")}
    return reproduce("rankdistillm:demo", systems, first_stage=first_stage, measures=["RR@10"], folder=folder)


def paper(table: str, first_stage: list[str], folder: str | None) -> Reproduction:
    """Both published checkpoints, against webis/monoelectra-base as in the paper."""
    named = dict(stage.split("=", 1) for stage in first_stage if "=" in stage)
    return reproduce(
        table,
        {"base": MonoElectra("webis/monoelectra-base"), "large": MonoElectra("webis/monoelectra-large")},
        first_stage=named or first_stage[0],
        mode="as_published",  # published cells are comparable with this mode only; used by TIREx only
        folder=folder,
        verbose=True,
    )


if __name__ == "__main__":
    main()
