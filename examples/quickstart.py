"""Re-rank BM25 with monoELECTRA and evaluate: offline, on the collection and checkpoint that ship with the package.

For real work, take another collection and ``MonoElectra("webis/monoelectra-base")``; nothing else changes.
"""

import pyterrier as pt
from pyterrier.measures import RR, nDCG

from pyterrier_rankdistillm import MonoElectra

dataset = pt.get_dataset("rankdistillm:demo")
topics, qrels = dataset.get_topics(), dataset.get_qrels()

# Any first stage works: a Terrier or PISA index, a dense retriever, a run file. The passages' text has to be loaded,
# too.
bm25 = pt.Transformer.from_df(dataset.get_results()) >> dataset.text_loader()
monoelectra = MonoElectra("rankdistillm:demo", verbose=True)

table = pt.Experiment(
    [bm25, bm25 >> monoelectra],
    topics,
    qrels,
    [nDCG @ 10, RR(rel=2) @ 10],
    names=["BM25", "BM25 >> MonoElectra"],
    baseline=0,
)
print(table.to_string(index=False))

# One query, by hand.
ranking = (bm25 >> monoelectra % 3)(topics.head(1))
print(ranking[["qid", "query", "docno", "score", "rank"]].to_string(index=False))
