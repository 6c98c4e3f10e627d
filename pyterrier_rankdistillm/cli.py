"""``rankdistillm``: the package's main jobs from the command line."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import OrderWarning
from .extras import require

if TYPE_CHECKING:
    from .reranker import CrossEncoderReRanker
    from .runs.given import GivenRun

# What the commands need is imported in them, so that --help and errors in options come without torch being loaded.
# Repeated here for the same reason; a test compares.
DTYPES = ("float32", "bfloat16", "float16", "int8", "tf32")

_GOES_ON = "What was finished is kept; the same call continues from there."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; default: the process's.

    Returns:
        0; 1 after an error that was printed; 3 where not everything that was reproduced agrees; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv[0] if argv else "").parse_args(argv)
    try:
        status: int | None = args.action(args)
    except KeyboardInterrupt:
        keeps = getattr(args, "folder", None) is not None or getattr(args, "engine", "") == "ray"
        print(f"rankdistillm {args.command}: stopped.{' ' + _GOES_ON if keeps else ''}", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is: users of a command want a message, not a traceback
        if args.debug:
            traceback.print_exc()
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)  # str(KeyError) is quoted
        print(f"rankdistillm {args.command}: {message or type(error).__name__}", file=sys.stderr)
        return 1
    return status or 0


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only: what ``--step`` stands for could change with the next option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser; that of ``command`` is complete, what is slow to find out about the others is left out."""
    parser = _Parser(prog="rankdistillm", description="Re-rank passages with Rank-DistiLLM models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    demo = commands.add_parser(
        "demo", help="compare BM25 with BM25 >> MonoElectra on the collection in the package (offline)"
    )
    demo.add_argument("--model", default="rankdistillm:demo", help="hub id or folder (default: %(default)s)")
    demo.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    demo.add_argument("--qid", default="q01", help="the query whose ranking is shown (default: %(default)s)")
    demo.set_defaults(action=_demo)

    rerank = commands.add_parser("rerank", help="re-rank a run into a run file (TREC, Parquet or JSON lines; gz)")
    rerank.add_argument("run", help="the first stage's run: a file, or a published one (rankdistillm:colbert)")
    rerank.add_argument(
        "output", type=Path, help="the re-ranked run; its suffix decides the format (.run.gz, .parquet, ...)"
    )
    _add_data(rerank, "queries and texts", ("topics", "text"), "what a Lightning IR file name or the run itself says")
    rerank.add_argument("--text-field", default="text",
                        help="the run's column with texts, where it has them (default: %(default)s)")  # fmt: skip
    _add_order(rerank)
    rerank.add_argument("--model", default="webis/monoelectra-base", help="hub id or folder (default: %(default)s)")
    rerank.add_argument("--revision", help="commit, tag or branch on the hub (default: its main branch)")
    rerank.add_argument("--local-files-only", action="store_true", help="use the hub's local cache only")
    rerank.add_argument("--depth", type=int, default=100, help="documents per query (default: %(default)s)")
    rerank.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    rerank.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    rerank.add_argument("--batch-tokens", type=int, help="tokens per batch (default: 512 on the CPU, else 32768)")
    rerank.add_argument("--query-length", type=int, help="tokens read of a query (default: the checkpoint's)")
    rerank.add_argument("--doc-length", type=int, help="tokens read of a text (default: the checkpoint's)")
    rerank.add_argument("--engine", choices=["local", "ray"], default="local",
                        help="this process, or Ray Data (many GPUs, cores or machines; can be stopped and resumed) "
                        "(default: %(default)s)")  # fmt: skip
    scale = rerank.add_argument_group("with --engine ray")
    scale.add_argument("--num-workers", type=int, help="actors that score (default: one per GPU, else per machine)")
    scale.add_argument("--address", help="of a running Ray (default: the one that runs here, else one is started)")
    _add_reuse(scale, "reranker, text")
    scale.add_argument(
        "--dry-run", action="store_true", help="only estimate what it would take: pairs, tokens, hours, memory"
    )
    rerank.set_defaults(action=_rerank)

    for stage, what, run in (
        ("finetune", "train on relevance labels and hard negatives", "the first stage's run"),
        ("distill", "train on a teacher's ranking", "the teacher's run"),
    ):
        training = commands.add_parser(stage, help=f"{what}: a run in, a checkpoint out")
        training.add_argument("student", help="what to start from: hub id or folder of a backbone or checkpoint")
        training.add_argument("run", help=f"{run}: a file, or a published one (rankdistillm:rankzephyr)")
        training.add_argument("output", type=Path, help="checkpoint folder to write")
        training.add_argument("--run", dest="more_runs", action="append", default=[],
                              help="another run of the same topics, whose rankings are further lists to train on; may "
                              "be repeated")  # fmt: skip
        _add_data(training, "queries, texts and labels", ("topics", "qrels", "text"),
                  "what a Lightning IR file name says, or the published run")  # fmt: skip
        _add_order(training)
        training.add_argument("--local-files-only", action="store_true", help="use the hub's local cache only")
        training.add_argument("--valid-run", help="a first stage's run of other topics, to validate on")
        training.add_argument("--valid-dataset", help="where their queries, texts and labels come from")
        _add_reuse(training, "student, texts, loss, validation")
        training.add_argument("--recipe", help="rank-distillm, or a YAML file of settings (default: rank-distillm)")
        if command == stage:
            _add_settings(training)
        training.set_defaults(action=_train)
    _add_reproduce(commands)
    for parsed in commands.choices.values():
        parsed.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


_FILES = {
    "topics": "file (tsv, JSON lines, Parquet)", "qrels": "file (TREC)",
    "text": "file (JSON lines, Parquet), folder of a Terrier index",
}  # fmt: skip


def _add_data(parser: argparse.ArgumentParser, what: str, kinds: Sequence[str], default: str) -> None:
    """Where topics, judgments and texts come from: one dataset, or a file (or dataset) for each."""
    parser.add_argument("--dataset", help=f"where {what} come from: an ir_datasets id, or rankdistillm:demo (default: "
                        f"{default})")  # fmt: skip
    for kind in kinds:
        parser.add_argument(f"--{kind}", help=f"{_FILES[kind]} or dataset (default: --dataset)")


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", choices=["rank", "score"],
                        help="what counts where the run's ranks contradict its scores (default: an error)")  # fmt: skip


def _add_reproduce(commands: argparse._SubParsersAction[_Parser]) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="run a table of the paper and compare it with the published one; exit status 0 if they agree, 3 if not",
    )
    reproduce.add_argument("table", help="trec-dl-2019, trec-dl-2020, trec-dl, tirex, ablation-loss, ablation-size")
    reproduce.add_argument("--first-stage", action="append", required=True, metavar="[NAME=]RUN",
                           help="run file, with {task} for the task; or tira; or bm25, which is made here (bm25:FOLDER "
                           "searches an index of yours); may be repeated with names")  # fmt: skip
    reproduce.add_argument("--task", action="append", metavar="TASK",
                           help="run only this task or corpus; may be repeated (default: the whole table)")  # fmt: skip
    reproduce.add_argument("--indices", type=Path, metavar="FOLDER",
                           help="where bm25 makes its indexes (default: under ir_datasets' home)")  # fmt: skip
    reproduce.add_argument("--system", action="append", default=[], metavar="NAME=MODEL",
                           help="hub id (hub-id@revision), folder or run file; may be repeated")  # fmt: skip
    reproduce.add_argument("--published", action="append", default=[], metavar="NAME=ROW",
                           help="the published row to compare a system with (default: that of its model)")  # fmt: skip
    reproduce.add_argument("--measure", action="append", default=[], help="in addition to nDCG@10; may be repeated")
    reproduce.add_argument(
        "--baseline", help="the system to test against (default: the first; of one system the first stage)"
    )
    reproduce.add_argument("--mode", choices=["corrected", "as_published"], default="corrected",
                           help="how the tasks of a TIREx corpus are pooled (default: %(default)s)")  # fmt: skip
    reproduce.add_argument("--depth", type=int, default=100, help="documents per topic (default: %(default)s)")
    _add_data(reproduce, "topics, judgments and texts", ("topics", "qrels", "text"), "the table's, by ir_datasets")
    reproduce.add_argument("--condensed", action="store_true", help="rank only documents that --text has; says so")
    reproduce.add_argument("--folder", type=Path, help="keep runs and results here, and continue where a call stopped")
    _add_reuse(reproduce, "systems.NAME, or 'first stage'")
    reproduce.add_argument("--html", type=Path, help="write the report here")
    reproduce.add_argument("--format", choices=["text", "markdown", "latex"], default="text", help="what is printed")
    reproduce.add_argument("--local-files-only", action="store_true", help="use the hub's local cache only")
    reproduce.add_argument("--device", help="torch device (default: CUDA where there is one, else the CPU)")
    reproduce.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    reproduce.set_defaults(action=_reproduce)


def _add_reuse(parser: argparse._ActionsContainer, parts: str) -> None:
    parser.add_argument("--reuse", action="append", default=[], metavar="PART",
                        help=f"use kept work although this differs ({parts}); an error names it; may be "
                        "repeated")  # fmt: skip


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option per setting, from ``Settings`` itself."""
    import dataclasses

    from .training.settings import Settings, descriptions, parsed

    told = descriptions()
    group = parser.add_argument_group("settings", "settings that differ from the recipe")
    for field in dataclasses.fields(Settings):
        name, text = f"--{field.name.replace('_', '-')}", told[field.name].replace("%", "%%")
        if field.type in ("bool", "bool | None"):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(name, type=parsed, default=argparse.SUPPRESS, metavar="VALUE", help=text)


def _demo(args: argparse.Namespace) -> None:
    from .demo.show import show

    show(model=args.model, device=args.device, qid=args.qid)


def _rerank(args: argparse.Namespace) -> None:
    from . import runs
    from .reranker import MonoElectra
    from .runs.given import contradiction, run_of, texts_of, topics_of
    from .runs.text import join_queries, join_text
    from .set_encoder import of_its_kind

    if args.depth < 1:
        raise ValueError(f"--depth must be at least 1, got {args.depth}.")
    reranker: CrossEncoderReRanker = MonoElectra(
        args.model,
        revision=args.revision,
        local_files_only=args.local_files_only,
        device=args.device,
        dtype=args.dtype,
        batch_tokens=args.batch_tokens,
        query_length=args.query_length,
        doc_length=args.doc_length,
        text_field=args.text_field if args.engine == "local" else "text",
        verbose=None,
    )
    runs.check_target(args.output)  # whatever can be wrong is found before the work, not after it
    given = run_of(args.run, who="rerank", order=args.order)
    if args.engine == "ray":
        _rerank_on_ray(args, reranker, given)
        return
    options = {"--num-workers": args.num_workers, "--address": args.address, "--dry-run": args.dry_run or None,
               "--reuse": args.reuse or None}  # fmt: skip
    given_options = [name for name, value in options.items() if value is not None]
    if given_options:
        raise ValueError(f"{given_options[0]} must come with --engine ray.")
    run = given.frame(scored=False)
    odd = contradiction(run)
    if odd is not None:
        warnings.warn(f"rerank: the run {odd} Its depth is cut by rank.", OrderWarning, stacklevel=2)
    run = run[run["rank"] < args.depth]
    runs.check_ids(run, args.output)
    topics, text = args.topics or args.dataset, args.text or args.dataset
    if topics is None and "query" not in run.columns:
        topics = _dataset_of(args.run, given, "--topics or --dataset")
    if text is None and args.text_field not in run.columns:
        text = _dataset_of(args.run, given, "--text or --dataset")
    loader = None if text is None else texts_of(text, who="rerank", argument="--text", field=args.text_field)
    reranker = of_its_kind(reranker)
    _ = reranker.scorer  # the model and the device are there
    if topics is not None:
        run = join_queries(run, topics_of(topics, who="rerank", argument="--topics", missing="drop"))
    if loader is not None:
        with_text = join_text(run, loader)
        run = run.assign(**{args.text_field: with_text["text"]})
    reranked = reranker.transform(run)
    runs.write(reranked[["qid", "docno", "score", "rank"]], args.output, tag=reranker.label.lower())
    print(f"{args.output}: {len(reranked)} rows for {reranked['qid'].nunique()} queries, by {reranker!r}")


def _dataset_of(run: str, given: GivenRun, options: str) -> Any:
    """The dataset that a run comes with; a ValueError that names the options where it comes with none."""
    if given.dataset is None:
        raise ValueError(
            f"{options} must be given, since {run} does not say what it was made of: it is neither a published run nor "
            f"named as Lightning IR names runs (__first-stage__msmarco-passage-train.run.gz)."
        )
    return given.dataset


def _rerank_on_ray(args: argparse.Namespace, reranker: CrossEncoderReRanker, given: GivenRun) -> None:
    from .scale import estimate_rerank, rerank_dataset
    from .set_encoder import of_its_kind

    text = args.text or args.dataset or _dataset_of(args.run, given, "--text or --dataset")
    topics = args.topics or args.dataset or given.dataset
    options: dict[str, Any] = {name: getattr(args, name) for name in ("depth", "num_workers", "address")}
    run = given if args.order is not None else args.run
    reranker = of_its_kind(reranker)
    if args.dry_run:
        print(estimate_rerank(run, reranker, args.output, text=text, topics=topics, **options))
        return
    made = rerank_dataset(run, reranker, args.output, text=text, topics=topics, reuse=args.reuse, **options)
    print(f"{args.output}: {made.record['rows']} rows for {made.record['queries']} queries, by {reranker!r}")


def _reproduce(args: argparse.Namespace) -> int:
    from .reproduction import reproduce
    from .runs.atomic import check_writable
    from .set_encoder import of_its_kind

    if args.html is not None:  # before the work, not after it
        require("jinja2", "--html")
        require("matplotlib", "--html")
        check_writable(args.html)
    stages = [_named(stage) for stage in args.first_stage]
    if len(stages) > 1 and not all(name for name, _ in stages):
        raise ValueError("--first-stage must have names (NAME=RUN) where it is repeated.")
    systems: dict[str, Any] = {}
    for name, source in map(_named, args.system):
        if not name or name in systems:
            raise ValueError(f"--system must be NAME=MODEL with a name of its own, got {name or source!r}.")
        systems[name] = _system(args, source)
    systems = {name: one if isinstance(one, str) else of_its_kind(one) for name, one in systems.items()}
    result = reproduce(
        args.table,
        systems,
        first_stage={name: run for name, run in stages if name} or stages[0][1],
        measures=args.measure,
        baseline=args.baseline,
        mode=args.mode,
        depth=args.depth,
        published=dict(_named(row) for row in args.published),
        topics=args.topics or args.dataset,
        qrels=args.qrels or args.dataset,
        text=args.text or args.dataset,
        condensed=args.condensed,
        tasks=args.task,
        indices=args.indices,
        folder=args.folder,
        reuse=args.reuse,
        verbose=True,
    )
    print({"text": result.__str__, "markdown": result.to_markdown, "latex": result.to_latex}[args.format]())
    if args.html is not None:
        result.to_html(args.html)
    return 0 if result.agrees else 3


def _system(args: argparse.Namespace, source: str) -> Any:
    """A run's name as it is; a model, which may carry a revision, as a re-ranker on the device that was asked for."""
    from .reranker import MonoElectraReRanker
    from .runs.given import GivenRun, ranker_of

    if "{task}" in source:
        return source
    model, _, revision = source.partition("@") if not Path(source).exists() else (source, "", "")
    ranker = ranker_of(model, who="reproduce", argument="--system", look=False)
    if isinstance(ranker, GivenRun):
        return source
    options = {"device": args.device, "dtype": args.dtype, "local_files_only": args.local_files_only}
    return MonoElectraReRanker(model, revision=revision or None, **options)


def _named(argument: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE; the name is empty if there is none."""
    name, separator, value = argument.partition("=")
    return (name, value) if separator else ("", argument)


def _train(args: argparse.Namespace) -> None:
    import dataclasses

    from . import Checkpoint, runs
    from .runs.atomic import check_writable
    from .runs.given import run_of
    from .training import Distillation, FineTuning, Settings
    from .training.launch import is_main_process

    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if hasattr(args, f.name)}
    kind = FineTuning if args.command == "finetune" else Distillation
    estimator = kind(args.student, recipe=args.recipe, **settings)
    # All that can be wrong is found before the work, not after it.
    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise FileExistsError(f"{args.output} exists. Choose another folder, or remove it.")
    check_writable(args.output / "config.json")
    if (args.valid_run is None) != (args.valid_dataset is None):
        raise ValueError("--valid-run and --valid-dataset go together: give both or neither.")
    run = run_of(args.run, who=args.command, order=args.order)
    more = [run_of(one, who=args.command, argument="--run", order=args.order) for one in args.more_runs]
    checkpoint = Checkpoint.open(
        args.student, local_files_only=args.local_files_only, new_head_seed=estimator.settings.seed
    )
    estimator.set_parameter("student", checkpoint)
    dataset = args.dataset or (None if args.topics and args.text else _dataset_of(args.run, run, "--dataset"))
    needs_labels = args.command == "finetune" or estimator.losses.needs == {"relevance"}
    valid_run = None if args.valid_run is None else runs.read(args.valid_run, dataset=args.valid_dataset)
    estimator.fit(
        args.topics or dataset,
        (args.qrels or dataset) if needs_labels else args.qrels,
        valid_run,
        args.valid_dataset,
        run=[run, *more] if more else run,
        text=args.text or dataset,
        reuse=args.reuse,
    )
    if is_main_process():
        estimator.reranker.save(args.output)
        print(f"{args.output}: a checkpoint, trained by {estimator!r}")
