"""Tables of items in parts: the same rows, the same training, whole outside of it."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch

from stages.candidate.config import CandidateConfig, ModelConfig
from stages.candidate.distributed.lookup import with_stride
from stages.candidate.distributed.sharding import INIT_BLOCK, Piece, fill
from stages.candidate.towers.table_parts import WHOLE, Part, dealt, part_of, parts
from stages.candidate.training import worker
from stages.candidate.training.batches import Batches
from stages.candidate.training.input_maker import InputMaker
from stages.contracts.config import merged
from stages.contracts.files import read_json, write_json
from stages.features.config import FeatureConfig
from tests.candidate.test_candidate_sharding import job
from tests.candidate.towers import build, load_whole, whole_state

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)
NAMES = ["weights/embeddings.embedding_bags.item.weight", "optimizer/embeddings.embedding_bags.item.weight/sum"]


@pytest.mark.parametrize(("rows", "n"), [(10, 1), (10, 3), (2, 4), (0, 2), (12, 4)])
def test_parts_hold_each_row_once(rows, n):
    found = [[part.row(own) for own in range(part.size(rows))] for part in parts(n)]
    assert [list(range(rows))[part.rows] for part in parts(n)] == found
    assert sorted(itertools.chain(*found)) == list(range(rows))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_name_says_which_part_it_is():
    name = "optimizer/embeddings.embedding_bags.{}.weight/sum"
    assert part_of(name.format(Part(11, 12).name("item"))) == (name.format("item"), Part(11, 12))
    assert part_of(name.format(WHOLE.name("item"))) == (name.format("item"), WHOLE)


@pytest.mark.parametrize("n", [1, 3])
def test_a_row_begins_the_same_in_a_part_as_in_the_whole(n):
    """Over a border of the blocks that a seed fills, for rows and columns of any shard."""
    rows, width = INIT_BLOCK + 40, 8
    whole = torch.empty(rows, width)
    fill([Piece(whole, slice(0, rows), slice(0, width))], width, torch.nn.init.normal_, (5, 7))
    assert len(whole.unique()) > 0.9 * whole.numel()
    pieces = []
    for part in parts(n):
        own = slice(3, part.size(rows) - 2)
        pieces.append(Piece(torch.full((own.stop - own.start, 4), torch.nan), own, slice(4, 8), part))
    fill(pieces, width, torch.nn.init.normal_, (5, 7))
    for piece in pieces:
        torch.testing.assert_close(piece.values, whole[piece.part.rows][piece.rows, 4:], rtol=0, atol=0)


@pytest.mark.parametrize(("codes", "n", "wanted"), [(0, 4, 1), (1024, 4, 1), (1025, 4, 2), (9999, 4, 4), (9999, 1, 1)])
def test_codes_are_dealt_to_more_features_where_there_are_more(codes, n, wanted):
    assert len(dealt(codes, n)) == wanted


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"model": {"word_buckets": 5000, "shared_item_table": False}},
        {"model": {"user_id": True, "word_buckets": 20}},
    ],
)
def test_the_model_does_not_depend_on_the_number_of_parts(rich_world, extra):
    """The forward pass and every gradient, with more parts than a batch needs and one more than divides the items."""
    examples, catalogue = rich_world
    found = []
    for n in (1, 2, 5):
        config = CandidateConfig(
            **merged(
                extra,
                {
                    "model": {"dimension": 8, "category_dimension": 4, "hidden": (6,), "item_parts": n},
                    "training": {"batch_size": 16},
                },
            )
        )
        model, batches, loss_of = build(examples, catalogue, config, FEATURES)
        if found:
            load_whole(model, found[0][0])
        state = whole_state(model)
        loss = loss_of(next(batches.epoch(0)))
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        found.append((state, loss.item(), whole_state(model)))
    for state, loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        assert state.keys() == found[0][0].keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, found[0][2][name], atol=1e-6, rtol=1e-4)
    assert np.abs(found[0][2]["embeddings.embedding_bags.item.weight"]).max() > 0


def test_content_is_looked_up_once_for_each_category_and_word(rich_world):
    examples, catalogue = rich_world
    config = CandidateConfig(model={"word_buckets": 1025, "item_parts": 3}, training={"batch_size": 16})
    batch = next(Batches(examples, catalogue, config, FEATURES).epoch(0))
    features = InputMaker(catalogue, config.model, torch.device("cpu"))(batch).features.to_dict()
    items = np.unique(np.concatenate([batch.history[batch.kept], batch.items]))
    for key, bags, n in (("category", catalogue.category_bags, 1), ("word", catalogue.word_bags, 2)):
        own = [features[part.name(key)] for part in parts(n)]
        assert sorted(torch.cat([each.values() for each in own]).tolist()) == np.unique(bags(items)[0]).tolist()
        assert all(int(each.lengths().max()) <= 1 for each in own)
    ids = [3 * features[part.name("item")].values() + part.number for part in parts(3)]
    assert sorted(torch.cat(ids).tolist()) == items.tolist()


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory, one_rank):
    """Finished trainings with one, two and seven parts, and one that goes on from two parts with three."""
    root, numbers = tmp_path_factory.mktemp("parts"), (1, 2, 7, 3)
    for n in numbers:
        job(planted, root / str(n), model={"item_parts": n})
    run = read_json(root / "3/run.json")
    write_json(root / "3/run.json", {**run, "warm_start": str(root / "2/state")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        for n in numbers:
            worker.train(root / str(n), progress=False)
    return root


@pytest.mark.parametrize("n", [2, 7])
def test_what_is_trained_does_not_depend_on_the_number_of_parts(trained, n):
    one, other = trained / "1", trained / str(n)
    losses = [read_json(place / "metrics.json")["losses"] for place in (one, other)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    files = [sorted(path.relative_to(place) for path in (place / "state").rglob("*.npy")) for place in (one, other)]
    assert files[0] == files[1]
    for name in NAMES:
        first, second = (np.load(place / f"state/{name}.npy") for place in (one, other))
        np.testing.assert_allclose(second, first, atol=1e-3, rtol=1e-3)


def test_training_goes_on_with_another_number_of_parts(trained):
    """From the loss that was reached, not from the first one."""
    first, then = (read_json(trained / n / "metrics.json")["losses"] for n in ("2", "3"))
    assert then[0] < first[-1] + 0.02 < first[0]
    before, after = (np.load(trained / n / f"state/{NAMES[1]}.npy") for n in ("2", "3"))
    assert (after >= before).all()  # sums of squares only grow: each row found its own
    assert (after > before).mean() > 0.9


def test_more_parts_than_items_are_not_made():
    assert [ModelConfig(item_parts=4).parts_of(n) for n in (0, 1, 3, 4, 100)] == [1, 1, 3, 4, 4]


def test_slots_are_free_of_the_stride(rich_world):
    """Other ranks may have more: rows behind a part's last one change no slot."""
    examples, catalogue = rich_world
    config = CandidateConfig(
        model={"dimension": 8, "category_dimension": 4, "hidden": (6,), "item_parts": 2}, training={"batch_size": 16}
    )
    _, batches, loss_of = build(examples, catalogue, config, FEATURES)
    batch = next(batches.epoch(0))
    inputs = loss_of.prepare(batch)
    features = with_stride(inputs.features, inputs.features.stride() + 9)
    assert features.stride() == inputs.features.stride() + 9
    larger = dataclasses.replace(inputs, features=features)
    assert loss_of(batch, larger).item() == loss_of(batch, inputs).item()
