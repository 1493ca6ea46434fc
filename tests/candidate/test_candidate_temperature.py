"""Temperatures: a number, one that follows from the number of items, and a learned one."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stages.candidate.config import CandidateConfig, LossConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.towers.fused_softmax import TargetFinder, fused_sampled_softmax
from stages.candidate.towers.temperature import Temperature, automatic_temperature, first_log_temperature, start_of
from stages.candidate.training import step
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from tests.candidate.one_rank import train
from tests.candidate.test_candidate_early_stopping import rank, settings


def test_with_the_automatic_temperature_a_positive_needs_the_same_cosine_whatever_the_catalogue():
    """Half of the mass against N random unit vectors, measured, for a hundred and for a hundred thousand items."""
    generator = torch.Generator().manual_seed(0)
    needed = []
    for n_items in (300, 100_000):
        temperature = automatic_temperature(n_items)
        vectors = torch.nn.functional.normalize(torch.randn(n_items, 256, generator=generator), dim=1)
        query = torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0)
        needed.append(float(temperature * torch.logsumexp(vectors @ query / temperature, 0)))
    assert needed == pytest.approx([needed[0]] * 2, abs=0.05)
    fixed = 0.15 * math.log(100_000) - 0.15 * math.log(300)
    assert fixed > 0.8  # what one number for both would lack


def test_a_number_stands_as_it_is_and_dot_products_need_none():
    auto = CandidateConfig(loss={"temperature": "auto"})
    assert start_of(CandidateConfig(loss={"temperature": 0.3}), 5000) == 0.3
    assert start_of(auto, 5000) == automatic_temperature(5000) > automatic_temperature(50_000) > 0
    assert start_of(auto.changed(model={"normalisation": "dot"}), 5000) == 1.0
    assert automatic_temperature(1) == automatic_temperature(8)


def test_words_and_bounds_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        LossConfig(temperature="warm")
    with pytest.raises(ValueError, match=r"temperature_bounds = \[0.5, 0.1\]: the first must not be above the second"):
        LossConfig(temperature_bounds=(0.5, 0.1))


class Learned(nn.Module):
    """Holds what ``Temperature`` reads of a model."""

    def __init__(self, value):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(value)))


def test_the_gradient_of_a_learned_temperature_is_that_of_the_fused_loss():
    config = CandidateConfig(loss={"learned_temperature": True})
    generator = torch.Generator().manual_seed(1)
    query, candidate = torch.randn(6, 8, generator=generator), torch.randn(9, 8, generator=generator)
    targets = TargetFinder(9, torch.device("cpu"))(torch.arange(9), torch.arange(6))

    def loss_at(value):
        model = Learned(value)
        temperature = Temperature(config, 9, model)
        assert temperature.value == pytest.approx(value)
        loss = fused_sampled_softmax(temperature.scaled(query), candidate, targets, temperature.rest)
        loss.backward()
        return float(loss.detach()), float(model.log_temperature.grad)

    value, gradient = loss_at(0.5)
    assert value == pytest.approx(float(fused_sampled_softmax(query, candidate, targets, 0.5)), rel=1e-5)
    low, high = (loss_at(0.5 * math.exp(shift))[0] for shift in (-0.01, 0.01))
    assert gradient == pytest.approx((high - low) / 0.02, rel=2e-2)
    assert abs(gradient) > 0.1


def test_a_learned_temperature_stays_within_its_bounds():
    config = CandidateConfig(loss={"learned_temperature": True, "temperature_bounds": (0.1, 0.4)})
    for value, kept in ((0.01, 0.1), (3.0, 0.4), (0.2, 0.2)):
        model = Learned(value)
        temperature = Temperature(config, 9, model)
        temperature.keep_in_bounds()
        assert temperature.value == pytest.approx(kept)
    assert first_log_temperature(config.changed(loss={"temperature": 3.0}), 9) == pytest.approx(math.log(0.4))
    assert first_log_temperature(CandidateConfig(), 9) is None


def test_a_learned_temperature_is_trained_kept_and_reported(planted, one_rank, tmp_path):
    loss = {"temperature": "auto", "learned_temperature": True}
    config = settings(epochs=3, training={"early_stopping": None}, loss=loss)
    metrics = rank(planted, tmp_path / "out", config)
    start = automatic_temperature(len(Catalogue.load(tmp_path / "out").eligible))
    stored = float(np.load(tmp_path / "out/state/weights/log_temperature.npy"))
    assert metrics["temperature"] == pytest.approx(math.exp(stored), rel=1e-6)
    assert abs(metrics["temperature"] / start - 1) > 0.02
    warm = tmp_path / "warm"
    warm.mkdir()
    step.prepare(config, Snapshot(planted), warm, warm=tmp_path / "out/state", until=0)
    train(config, warm)
    assert read_json(warm / "metrics.json")["temperature"] == pytest.approx(metrics["temperature"], rel=1e-6)
