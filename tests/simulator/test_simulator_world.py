from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from pydantic import ValidationError

from stages.contracts.files import read_json
from stages.contracts.tables import DAY_MS
from stages.simulator import World, WorldConfig, write_world
from stages.simulator.titles import item_titles

SMALL = WorldConfig(n_users=120, n_items=200, n_events=4_000, days=10, duplicate_share=0.1)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


def normalised(title: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", title) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[\W_]+", " ", plain.casefold()).split())


def test_equal_seeds_give_equal_worlds_and_other_seeds_others() -> None:
    again, other = World(SMALL), World(SMALL.model_copy(update={"seed": 8}))
    assert World(SMALL).items().equals(again.items())
    assert not again.items().equals(other.items())


def test_items_are_in_birth_order_and_some_are_born_during_the_log(world: World) -> None:
    table = world.items()
    births = table["created_at_ms"].to_numpy()
    assert np.all(np.diff(births) >= 0)
    assert 0.3 < np.mean(births > SMALL.start_ms) < 0.5
    assert births.max() < world.end_ms
    assert len(set(table["item_id"].to_pylist())) == SMALL.n_items


def test_planted_duplicates_are_later_copies_half_exact_half_near(world: World) -> None:
    table = world.items().to_pydict()
    by_id = {key: row for row, key in enumerate(table["item_id"])}
    assert len(world.duplicates()) == 20
    assert len(world.duplicates("exact")) == len(world.duplicates("near")) == 10
    for copy, original in world.duplicates().items():
        assert by_id[original] < by_id[copy]
        assert table["categories"][by_id[copy]] == table["categories"][by_id[original]]
        titles = table["title"][by_id[copy]], table["title"][by_id[original]]
        assert titles[0] != titles[1]
        same = normalised(titles[0]) == normalised(titles[1])
        assert same == (copy in world.duplicates("exact"))
    assert len({normalised(title) for title in table["title"]}) == SMALL.n_items - 10


def test_titles_stay_different_beyond_every_word_list() -> None:
    titles = item_titles(np.repeat(np.arange(70), 1_000))
    assert len({normalised(title) for title in titles}) == 70_000


def test_a_copy_is_worth_as_much_as_its_original(world: World) -> None:
    copies = np.flatnonzero(world.original != np.arange(SMALL.n_items))
    users, time = np.arange(SMALL.n_users)[:, None], np.array(world.end_ms)
    preference = world.true_preference(users, time, copies)
    assert preference.shape == (SMALL.n_users, len(copies))
    np.testing.assert_allclose(preference, world.true_preference(users, time, world.original[copies]))
    assert np.all((preference > 0) & (preference < 1))


def test_best_items_agree_with_a_plain_sort(world: World) -> None:
    time = SMALL.start_ms + 3 * DAY_MS
    scores = {
        row: float(world.true_preference(np.array(5), np.array(time), np.array(row)))
        for row in range(SMALL.n_items)
        if world.birth_ms[row] <= time and world.original[row] == row
    }
    wanted = sorted(scores, key=lambda row: (-scores[row], row))[:7]
    assert world.best_items(5, time, 7).tolist() == wanted
    assert len(world.best_items(5, time, 10_000)) == len(scores)


def test_tastes_drift_slowly_and_differ_between_users(world: World) -> None:
    users = np.arange(SMALL.n_users)
    first, soon, last = (world.tastes(users, np.array(SMALL.start_ms + days * DAY_MS)) for days in (0, 1, 10))
    near, far = (first * soon).sum(1).mean(), (first * last).sum(1).mean()
    assert near > 0.95 > 0.9 > far
    between = first @ first.T
    assert between[~np.eye(len(users), dtype=bool)].mean() < 0.3


def test_fresh_items_and_fitting_durations_are_worth_more(world: World) -> None:
    row, user = int(np.flatnonzero(world.original == np.arange(SMALL.n_items))[-1]), np.array(0)
    born = int(world.birth_ms[row])
    fresh, old = (world.true_preference(user, np.array(born + days * DAY_MS), np.array(row)) for days in (0, 30))
    assert fresh > old
    other = World(SMALL)
    other.preferred_duration_s[0] = other.duration_s[row]
    assert other.true_preference(user, np.array(born), np.array(row)) >= fresh


def test_write_world_writes_the_truth(tmp_path: object, world: World) -> None:
    from pathlib import Path

    import pyarrow.parquet as pq

    directory = Path(str(tmp_path)) / "world"
    counts = write_world(SMALL, directory)
    truth = read_json(directory / "truth.json")
    assert truth["counts"] == counts
    assert truth["inactive_users"] == world.inactive_users()
    assert {**truth["duplicates"]["exact"], **truth["duplicates"]["near"]} == world.duplicates()
    assert WorldConfig.model_validate(truth["config"]) == SMALL
    assert pq.read_table(directory / "events.parquet").num_rows == sum(counts.values())
    assert pq.read_table(directory / "items.parquet").equals(world.items())
    assert pq.read_table(directory / "users.parquet").equals(world.users())


@pytest.mark.parametrize("values", [{"n_events": 10}, {"days": 0}, {"duplicate_share": 0.6}, {"users": 3}])
def test_configurations_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WorldConfig.model_validate(values)
