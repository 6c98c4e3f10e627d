"""A cascade: BM25, monoELECTRA on its top, and a Set-Encoder on the top 10 of that, which sees them together.

Runs offline. No set encoder ships with the package, so a small one is distilled from the demo checkpoint first, which
shows how it is done; on so few lists it learns to copy its teacher, not to surpass it. For real work:
``bm25 >> MonoElectra("webis/monoelectra-base") % 20 >> SetEncoderReRanker("webis/set-encoder-base")``.
"""

import tempfile

import pyterrier as pt
from pyterrier.measures import RR, nDCG

from pyterrier_rankdistillm import Checkpoint, Distillation, MonoElectra, SetEncoderReRanker

dataset = pt.get_dataset("rankdistillm:demo")
topics, qrels = dataset.get_topics(), dataset.get_qrels()
train, test = topics[:20], topics[20:]
bm25 = pt.Transformer.from_df(dataset.get_results()) >> dataset.text_loader()
monoelectra = MonoElectra("rankdistillm:demo", doc_length=64)

student = Checkpoint.open("rankdistillm:demo").as_set_encoder(depth=10, extra_token_seed=42)
distilled = Distillation(
    student, teacher=monoelectra, depth=10, steps=12, batch_size=4, learning_rate=1e-4, doc_length=64
)
(bm25 >> distilled).fit(train, None)
folder = distilled.reranker.save(tempfile.mkdtemp())  # Lightning IR's format

before, after = SetEncoderReRanker(student, doc_length=64), SetEncoderReRanker(folder)
cascade = bm25 >> monoelectra % 10
table = pt.Experiment(
    [bm25, cascade, cascade >> before, cascade >> after],
    test,
    qrels,
    [nDCG @ 10, RR(rel=2) @ 10],
    names=["BM25", ">> MonoElectra % 10", ">> untrained Set-Encoder", ">> Set-Encoder"],
)
print(table.to_string(index=False))
