"""``rankdistillm``: the package's main jobs from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__

DTYPES = ("float32", "bfloat16", "float16")  # repeated here, so that --help does not import torch; a test compares


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; default: the process's.

    Returns:
        0, or 1 after an error that was printed.
    """
    args = _parser().parse_args(argv)
    try:
        args.action(args)
    except (ValueError, OSError, KeyError, ImportError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) is quoted
        print(f"rankdistillm {args.command}: {message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankdistillm", description="Re-rank passages with Rank-DistiLLM models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="BM25 against BM25 >> MonoElectra on the collection in the package (offline)"
    )
    demo.add_argument("--model", default="rankdistillm:demo", help="hub id or folder (default: %(default)s)")
    demo.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    demo.add_argument("--qid", default="q01", help="the query whose ranking is shown (default: %(default)s)")
    demo.set_defaults(action=_demo)

    rerank = commands.add_parser("rerank", help="re-rank a run file into a run file (TREC, Parquet or JSON lines; gz)")
    rerank.add_argument("run", type=Path, help="the first stage's run")
    rerank.add_argument(
        "output", type=Path, help="the re-ranked run; its suffix is its format (.run.gz, .parquet, ...)"
    )
    rerank.add_argument(
        "--dataset",
        help="where queries and texts come from: an ir_datasets id, or rankdistillm:demo "
        "(default: what a Lightning IR file name says, __first-stage__msmarco-passage-trec-dl-2019-judged.run)",
    )
    rerank.add_argument("--model", default="webis/monoelectra-base", help="hub id or folder (default: %(default)s)")
    rerank.add_argument("--revision", help="commit, tag or branch on the hub (default: its main branch)")
    rerank.add_argument("--depth", type=int, default=100, help="documents a query (default: %(default)s)")
    rerank.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    rerank.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    rerank.add_argument("--batch-tokens", type=int, help="tokens encoded together (default: 768 on the CPU, 32768)")
    rerank.add_argument("--query-length", type=int, help="tokens read of a query (default: the checkpoint's)")
    rerank.add_argument("--doc-length", type=int, help="tokens read of a text (default: the checkpoint's)")
    rerank.set_defaults(action=_rerank)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo.show import show

    show(model=args.model, device=args.device, qid=args.qid)


def _rerank(args: argparse.Namespace) -> None:
    from . import runs
    from .reranker import MonoElectra

    if args.depth < 1:
        raise ValueError(f"--depth must be at least 1, got {args.depth}.")
    reranker = MonoElectra(
        args.model,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        batch_tokens=args.batch_tokens,
        query_length=args.query_length,
        doc_length=args.doc_length,
        verbose=True,
    )
    runs.check_target(args.output)  # before the work, not after it
    dataset = args.dataset or runs.dataset_of(args.run)
    run = runs.read(args.run)
    run = run[run["rank"] < args.depth]
    reranked = reranker.transform(runs.add_text(runs.add_queries(run, dataset), dataset))
    runs.write(reranked[["qid", "docno", "score", "rank"]], args.output, tag="monoelectra")
    print(f"{args.output}: {len(reranked)} rows for {reranked['qid'].nunique()} queries, by {reranker!r}")
