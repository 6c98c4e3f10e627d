"""``rankdistillm``: the package's main jobs from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .extras import require

if TYPE_CHECKING:
    from .reranker import MonoElectra

# What the commands need is imported in them, so that --help and errors in options come without torch being loaded.
# Repeated here for the same reason; a test compares.
DTYPES = ("float32", "bfloat16", "float16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; default: the process's.

    Returns:
        0; 1 after an error that was printed; 3 where not everything that was reproduced agrees.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv[0] if argv else "").parse_args(argv)
    try:
        status: int | None = args.action(args)
    except (ValueError, OSError, KeyError, ImportError, MemoryError, ArithmeticError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) is quoted
        print(f"rankdistillm {args.command}: {message}", file=sys.stderr)
        return 1
    return status or 0


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser; that of ``command`` is complete, what is slow to find out about the others is left out."""
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
    rerank.add_argument("--batch-tokens", type=int, help="tokens encoded together (default: 512 on the CPU, 32768)")
    rerank.add_argument("--query-length", type=int, help="tokens read of a query (default: the checkpoint's)")
    rerank.add_argument("--doc-length", type=int, help="tokens read of a text (default: the checkpoint's)")
    rerank.add_argument("--engine", choices=["local", "ray"], default="local",
                        help="this process, or Ray Data: many GPUs, cores or machines; goes on where it was stopped "
                        "(default: %(default)s)")  # fmt: skip
    scale = rerank.add_argument_group("with --engine ray")
    scale.add_argument("--num-workers", type=int, help="actors that score (default: one a GPU, else one a machine)")
    scale.add_argument("--address", help="of a running Ray (default: the one that runs here, else one is started)")
    _add_reuse(scale, "reranker, text")
    scale.add_argument(
        "--dry-run", action="store_true", help="only say what it would take: pairs, tokens, hours, memory"
    )
    rerank.set_defaults(action=_rerank)

    for stage, what, run in (
        ("finetune", "train on relevance labels and hard negatives", "the first stage's run"),
        ("distill", "train on a teacher's ranking", "the teacher's run"),
    ):
        training = commands.add_parser(stage, help=f"{what}: a run file in, a checkpoint out")
        training.add_argument("student", help="what to start from: hub id or folder of a backbone or checkpoint")
        training.add_argument("run", help=f"{run}: a file, or a published one (rankdistillm:rankzephyr)")
        training.add_argument("output", type=Path, help="checkpoint folder to write")
        training.add_argument(
            "--dataset",
            help="where queries, texts and labels come from: an ir_datasets id, or rankdistillm:demo (default: what a "
            "Lightning IR file name says, or the published run)",
        )
        training.add_argument("--valid-run", help="a first stage's run of other topics, to validate on")
        training.add_argument("--valid-dataset", help="where their queries, texts and labels come from")
        _add_reuse(training, "student, texts, loss, validation")
        training.add_argument("--recipe", help="rank-distillm, or a YAML file of settings (default: rank-distillm)")
        if command == stage:
            _add_settings(training)
        training.set_defaults(action=_train)
    _add_reproduce(commands)
    return parser


def _add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="a table of the paper, measured against published; the exit status says whether it agrees (0) or not (3)",
    )
    reproduce.add_argument("table", help="trec-dl-2019, trec-dl-2020, trec-dl, tirex, ablation-loss, ablation-size")
    reproduce.add_argument("--first-stage", action="append", required=True, metavar="[NAME=]RUN",
                           help="run file, with {task} for the task; or tira; may be repeated with names")  # fmt: skip
    reproduce.add_argument("--system", action="append", default=[], metavar="NAME=MODEL",
                           help="hub id (hub-id@revision), folder or run file; may be repeated")  # fmt: skip
    reproduce.add_argument("--published", action="append", default=[], metavar="NAME=ROW",
                           help="the published row that a system stands for (default: that of its model)")  # fmt: skip
    reproduce.add_argument("--measure", action="append", default=[], help="besides nDCG@10; may be repeated")
    reproduce.add_argument("--baseline", help="the system to test against (default: the first)")
    reproduce.add_argument("--mode", choices=["corrected", "as_published"], default="corrected",
                           help="how the tasks of a TIREx corpus are pooled (default: %(default)s)")  # fmt: skip
    reproduce.add_argument("--depth", type=int, default=100, help="documents a topic (default: %(default)s)")
    for name, what in (("topics", "qid, tab, query"), ("qrels", "TREC"), ("text", "JSON lines of docno and text")):
        reproduce.add_argument(f"--{name}", help=f"file ({what}) or dataset (default: the table's, by ir_datasets)")
    reproduce.add_argument("--condensed", action="store_true", help="rank only documents that --text has; says so")
    reproduce.add_argument("--folder", type=Path, help="keep runs and results here, and go on where a call stopped")
    _add_reuse(reproduce, "systems.NAME, or 'first stage'")
    reproduce.add_argument("--html", type=Path, help="write the report here")
    reproduce.add_argument("--format", choices=["text", "markdown", "latex"], default="text", help="what is printed")
    reproduce.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    reproduce.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    reproduce.set_defaults(action=_reproduce)


def _add_reuse(parser: argparse._ActionsContainer, parts: str) -> None:
    parser.add_argument("--reuse", action="append", default=[], metavar="PART",
                        help=f"take kept work up although this differs ({parts}); an error names it; may be "
                        "repeated")  # fmt: skip


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option a setting, from ``Settings`` itself."""
    import dataclasses

    from .training.settings import Settings, descriptions, parsed

    told = descriptions()
    group = parser.add_argument_group("settings", "what differs from the recipe")
    for field in dataclasses.fields(Settings):
        name, text = f"--{field.name.replace('_', '-')}", told[field.name].replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(name, type=parsed, default=argparse.SUPPRESS, metavar="VALUE", help=text)


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
    if args.engine == "ray":
        _rerank_on_ray(args, reranker, dataset)
        return
    options = {"--num-workers": args.num_workers, "--address": args.address, "--dry-run": args.dry_run or None,
               "--reuse": args.reuse or None}  # fmt: skip
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} must come with --engine ray.")
    run = runs.read(args.run)
    run = run[run["rank"] < args.depth]
    reranked = reranker.transform(runs.add_text(runs.add_queries(run, dataset), dataset))
    runs.write(reranked[["qid", "docno", "score", "rank"]], args.output, tag="monoelectra")
    print(f"{args.output}: {len(reranked)} rows for {reranked['qid'].nunique()} queries, by {reranker!r}")


def _rerank_on_ray(args: argparse.Namespace, reranker: MonoElectra, dataset: str) -> None:
    from .scale import estimate_rerank, rerank_dataset

    options: dict[str, Any] = {name: getattr(args, name) for name in ("depth", "num_workers", "address")}
    if args.dry_run:
        print(estimate_rerank(args.run, reranker, args.output, text=dataset, topics=dataset, **options))
        return
    made = rerank_dataset(args.run, reranker, args.output, text=dataset, topics=dataset, reuse=args.reuse, **options)
    print(f"{args.output}: {made.record['rows']} rows for {made.record['queries']} queries, by {reranker!r}")


def _reproduce(args: argparse.Namespace) -> int:
    from .reproduction import reproduce
    from .reranker import MonoElectra

    if args.html is not None:
        require("jinja2", "--html")  # before the work, not after it
    stages = [_named(stage) for stage in args.first_stage]
    if len(stages) > 1 and not all(name for name, _ in stages):
        raise ValueError("--first-stage must have names (NAME=RUN) where it is repeated.")
    systems: dict[str, Any] = {}
    for name, source in map(_named, args.system):
        if not name or name in systems:
            raise ValueError(f"--system must be NAME=MODEL with a name of its own, got {name or source!r}.")
        model, _, revision = source.partition("@") if not Path(source).exists() else (source, "", "")
        is_run = Path(source).is_file() or "{task}" in source
        options = {"revision": revision or None, "device": args.device, "dtype": args.dtype}
        systems[name] = source if is_run else MonoElectra(model, **options)
    result = reproduce(
        args.table,
        systems,
        first_stage={name: run for name, run in stages if name} or stages[0][1],
        measures=args.measure,
        baseline=args.baseline,
        mode=args.mode,
        depth=args.depth,
        published=dict(_named(row) for row in args.published),
        topics=args.topics,
        qrels=args.qrels,
        text=args.text,
        condensed=args.condensed,
        folder=args.folder,
        reuse=args.reuse,
        verbose=True,
    )
    print({"text": result.__str__, "markdown": result.to_markdown, "latex": result.to_latex}[args.format]())
    if args.html is not None:
        result.to_html(args.html)
    return 0 if result.agrees else 3


def _named(argument: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE; the name is empty where there is none."""
    name, separator, value = argument.partition("=")
    return (name, value) if separator else ("", argument)


def _train(args: argparse.Namespace) -> None:
    import dataclasses

    from . import Distillation, FineTuning, runs
    from .training.data import is_published
    from .training.launch import is_main_process
    from .training.settings import Settings

    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if hasattr(args, f.name)}
    estimator = (FineTuning if args.command == "finetune" else Distillation)(
        args.student, recipe=args.recipe, **settings
    )
    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise FileExistsError(f"{args.output} exists. Choose another folder, or remove it.")
    if (args.valid_run is None) != (args.valid_dataset is None):
        raise ValueError("--valid-run and --valid-dataset go together: give both or neither.")
    dataset = args.dataset or (args.run if is_published(args.run) else runs.dataset_of(args.run))
    valid_run = valid_qrels = None
    if args.valid_run is not None:
        valid_run = runs.read(args.valid_run, dataset=args.valid_dataset)
        valid_qrels = runs.load_qrels(args.valid_dataset)
    needs_labels = args.command == "finetune" or estimator.losses.needs == {"relevance"}
    estimator.fit(
        runs.load_topics(dataset),
        runs.load_qrels(dataset) if needs_labels else None,
        valid_run,
        valid_qrels,
        run=args.run,
        text=dataset,
        reuse=args.reuse,
    )
    if is_main_process():
        estimator.reranker.save(args.output)
        print(f"{args.output}: a checkpoint, trained by {estimator!r}")
