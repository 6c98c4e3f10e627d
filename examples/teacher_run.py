"""From topics to a trained student: a first stage, a teacher's run over it, and the student that learns it.

    pip install pyterrier-rankdistillm[train]
    python examples/teacher_run.py teacher.run.gz my-student
    python examples/teacher_run.py teacher.run.gz my-student --teacher rankzephyr     # an LLM; needs a GPU

Topics, passages and first stage are those of the demo collection that ships with the package. The teacher is a stand-in
that counts shared words, so that the example runs anywhere in a minute or two; with --teacher it is one of the LLMs of
rank_llm (pip install rank-llm). You can stop it at any time; the same call continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pyterrier as pt

from pyterrier_rankdistillm import Distillation, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the teacher's run file to write")
    parser.add_argument("student", type=Path, help="checkpoint folder to write")
    parser.add_argument("--teacher", choices=["words", "rankzephyr", "rankvicuna"], default="words")
    parser.add_argument("--queries", type=int, help="number of topics to use; default: all")
    parser.add_argument("--depth", type=int, default=10, help="passages per query")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the queries")
    args = parser.parse_args()

    # 1. Candidates, from any retriever or, as here, from a run.
    dataset = pt.get_dataset("rankdistillm:demo")
    candidates = runs.subsample(dataset.get_results(), queries=args.queries)
    first_stage = pt.Transformer.from_df(candidates) >> dataset.text_loader()
    topics = dataset.get_topics()
    topics = topics[topics["qid"].isin(candidates["qid"])].reset_index(drop=True)

    # 2. The teacher's ranking of the candidates, made in shards, with a record of how it was made.
    teacher_run = runs.make_teacher_run(
        make_teacher(args.teacher), first_stage, topics, args.output, depth=args.depth, shard_size=8
    )
    print(f"{teacher_run.path}: {teacher_run.record['rows']} passages of {teacher_run.record['queries']} queries")
    print(teacher_run.read(dataset=dataset)[["qid", "rank", "score", "text"]].head().to_string(index=False))

    # 3. The student: a small checkpoint that learns the teacher's order.
    distillation = Distillation(
        "rankdistillm:demo", teacher=teacher_run.path, depth=args.depth, epochs=args.epochs, batch_size=4
    )
    (first_stage >> distillation).fit(topics, None)
    distillation.reranker.save(args.student)
    print(f"{args.student}: re-ranks with MonoElectra({str(args.student)!r})")


def make_teacher(name: str) -> pt.Transformer:
    if name == "words":
        return pt.apply.doc_score(shared_words)
    from rank_llm.rerank.listwise import VicunaReranker, ZephyrReranker

    # Listwise: windows of 20 passages, from the bottom of the ranking to its top, in steps of 10.
    windows = {"window_size": 20, "stride": 10}
    if name == "rankzephyr":
        return runs.RankLlm(ZephyrReranker(**windows), model="castorini/rank_zephyr_7b_v1_full", settings=windows)
    return runs.RankLlm(VicunaReranker(**windows), model="castorini/rank_vicuna_7b_v1", settings=windows)


def shared_words(row: pd.Series) -> float:
    """The share of the query's words that occur in the passage."""
    words = set(row["query"].lower().split())
    return len(words & set(row["text"].lower().split())) / len(words)


if __name__ == "__main__":
    main()
