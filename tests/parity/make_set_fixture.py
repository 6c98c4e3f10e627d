"""Makes ``set-encoder/`` beside this file: two set encoders that Lightning IR 0.0.6 saves, and its scores of lists.

Run by hand, as ``make_fixture.py``, whose vocabulary and way it takes::

    python tests/parity/make_set_fixture.py

One checkpoint has the extra token, the other shows the [CLS] vectors. Lists are scored one at a time, with
``sample_missing_docs`` off (with it on, Lightning IR draws random vectors). ``tests/test_set_encoder.py`` reads it.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import make_fixture
import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.models import SetEncoderConfig
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import ElectraConfig, ElectraModel, ElectraTokenizerFast

FOLDER = Path(__file__).resolve().parent / "set-encoder"


def main() -> None:
    lines = (make_fixture.COLLECTION / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    topics = (make_fixture.COLLECTION / "queries.tsv").read_text(encoding="utf-8").splitlines()
    queries = [line.split("\t")[1] for line in topics]
    lists = choose_lists(queries, passages)
    shutil.rmtree(FOLDER, ignore_errors=True)
    scores = {}
    for name, extra_token in (("with-token", True), ("without-token", False)):
        module = save_checkpoint(FOLDER / name, [*passages, *queries], extra_token)
        with torch.inference_mode():
            scores[name] = [module.score(query, texts).scores.tolist() for query, texts in lists]
        print(name, [f"{min(one):.2f} to {max(one):.2f}" for one in scores[name]])
    with (FOLDER / "lists.jsonl").open("w", encoding="utf-8") as out:
        for number, (query, texts) in enumerate(lists):
            row = {"query": query, "texts": texts, **{name: found[number] for name, found in scores.items()}}
            out.write(json.dumps(row) + "\n")


def save_checkpoint(folder: Path, texts: list[str], extra_token: bool) -> CrossEncoderModule:
    """A random checkpoint, opened again from where it was saved."""
    wordpiece = BertWordPieceTokenizer(make_fixture.vocabulary(texts), lowercase=True)
    torch.manual_seed(11)
    with tempfile.TemporaryDirectory() as backbone:
        wordpiece.save(f"{backbone}/tokenizer.json")
        tokenizer = ElectraTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json", model_max_length=512)
        tokenizer.save_pretrained(backbone)
        shape = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
        config = ElectraConfig(
            vocab_size=wordpiece.get_vocab_size() + extra_token, num_attention_heads=4, initializer_range=0.3, **shape
        )
        ElectraModel(config).save_pretrained(backbone)
        settings = SetEncoderConfig(
            query_length=make_fixture.QUERY_LENGTH,
            doc_length=make_fixture.DOC_LENGTH,
            depth=20,
            add_extra_token=extra_token,
            sample_missing_docs=False,
            linear_bias=not extra_token,
        )
        module = CrossEncoderModule(backbone, config=settings)
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide that they are left out
        for parameter in module.model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
        module.model.linear.weight.normal_(0, 0.5)
    module.model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    return CrossEncoderModule(str(folder)).eval()


def choose_lists(queries: list[str], passages: list[str]) -> list[tuple[str, list[str]]]:
    draw = random.Random(2)
    long_query, long_text = " ".join(draw.sample(queries, 8)), " ".join(draw.sample(passages, 6))
    lists = [(query, draw.sample(passages, size)) for query, size in zip(queries, (1, 2, 7, 20), strict=False)]
    twice = draw.choice(passages)
    odd = ["", twice, long_text, twice, "A [SEP] B [CLS] C [INT] D", "\u6c34\u706b Stra\u00dfe \U0001f35e"]
    return [*lists, (queries[4], odd), (long_query, [long_text, passages[0]])]


if __name__ == "__main__":
    main()
