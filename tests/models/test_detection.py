from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from mlmx.models.detection import DetectionHead, detection_loss, detection_metrics


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_those_of_scikit_learn(ties):
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(400, generator=generator) < 0.15
    logits = torch.randn(400, generator=generator) + replaced.float() - 1.0
    if ties:
        logits = (2 * logits).round() / 2
    values = {name: float(part) / float(whole) for name, (part, whole) in detection_metrics(logits, replaced).items()}
    said = (logits > 0).numpy()
    assert values == pytest.approx(
        {
            "detection_accuracy": accuracy_score(replaced, said),
            "detection_f1": f1_score(replaced, said),
            "detection_auc": roc_auc_score(replaced, logits),
            "replaced_ratio": float(replaced.float().mean()),
        },
        abs=1e-6,
    )
    expected = log_loss(replaced, torch.sigmoid(logits.double()).numpy(), normalize=False)
    assert detection_loss(logits, replaced).item() == pytest.approx(expected, rel=1e-6)


def test_without_a_replaced_token_there_is_no_pair_to_order():
    metrics = detection_metrics(torch.zeros(5), torch.zeros(5, dtype=torch.bool))
    assert float(metrics["detection_auc"][1]) == float(metrics["detection_auc"][0]) == 0
    assert float(metrics["detection_f1"][1]) == 0


def test_a_fresh_head_says_nothing():
    torch.manual_seed(0)
    logits = DetectionHead(16, initializer_range=0.02)(torch.randn(50, 16))
    assert logits.shape == (50,)
    assert np.abs(logits.detach().numpy()).max() < 0.1
