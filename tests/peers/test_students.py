"""Students that were trained here, opened by an installed Lightning IR; see README.md beside this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import toy

from pyterrier_rankdistillm import MonoElectra

# Lightning IR and what it brings warn on import and on opening its own checkpoints.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("stage", ["finetune", "distill"])
@pytest.mark.parametrize("start", ["checkpoint", "backbone"])
def test_a_trained_student_scores_equally_in_lightning_ir(
    stage: str, start: str, checkpoint: Any, tmp_path: Path
) -> None:
    lightning_ir = pytest.importorskip("lightning_ir")
    student = checkpoint("lightning-ir-hub").folder if start == "checkpoint" else tiny.backbone(tmp_path / "backbone")
    one = {"finetune": toy.fine_tuning, "distill": toy.distillation}[stage](student)
    one.fit(toy.TRAIN, toy.QRELS)
    folder = one.reranker.save(tmp_path / "student")
    ours = one.reranker(toy.VALID).sort_values(["qid", "docno"])
    module = lightning_ir.CrossEncoderModule(str(folder)).eval()
    with torch.inference_mode():
        theirs = [float(module.score(q, [t]).scores[0]) for q, t in zip(ours["query"], ours["text"], strict=True)]
    if start == "checkpoint":  # it was changed by the training
        before = MonoElectra(student)(toy.VALID).sort_values(["qid", "docno"])
        assert not np.allclose(ours["score"], before["score"], rtol=0, atol=0.01)
    np.testing.assert_allclose(theirs, ours["score"], rtol=0, atol=2e-5)
