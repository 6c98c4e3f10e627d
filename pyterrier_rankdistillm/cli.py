"""``rankdistillm``: the package's main jobs from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; default: the process's.

    Returns:
        0, or 1 after an error that was printed.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, KeyError, MemoryError) as error:
        print(f"rankdistillm {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankdistillm", description="Re-rank passages with Rank-DistiLLM models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="BM25 against BM25 >> MonoElectra on the collection that ships with the package (offline, seconds)",
    )
    demo.add_argument("--model", default="rankdistillm:demo", help="hub id or folder (default: %(default)s)")
    demo.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    demo.add_argument("--qid", default="q01", help="the query whose ranking is shown (default: %(default)s)")
    demo.set_defaults(run=_demo)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo.show import show

    show(model=args.model, device=args.device, qid=args.qid)
