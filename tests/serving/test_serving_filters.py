"""Filters over real HTTP: retrieval, fill and the popular list obey them alike."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.item_filter import ItemFilter
from stages.contracts.tables import DAY_MS
from stages.features.history import Moment, tower_inputs

AS_OF_MS = 1_700_000_000_000
N_ITEMS, FUTURE_ITEM, WITHHELD = 300, 299, (3, 17, 298)
YOUNG = range(0, N_ITEMS, 7)


@pytest.fixture(scope="module")
def release(tmp_path_factory, request):
    """A release whose every seventh item is two days old; the others have sixty days."""
    build, seal = (request.getfixturevalue(name) for name in ("build_once", "seal_once"))
    directory = build(tmp_path_factory.mktemp("filters") / "release", "young", 0)
    path = directory / "items.parquet"
    table = pq.read_table(path)
    born = table["created_at_ms"].to_numpy().copy()
    born[[item for item in YOUNG if item != FUTURE_ITEM]] = AS_OF_MS - 2 * DAY_MS
    column = table.schema.get_field_index("created_at_ms")
    pq.write_table(table.set_column(column, "created_at_ms", pa.array(born, pa.int64())), path)
    seal(directory, "2023-11-14-young")
    return directory


@pytest.fixture
def service(release, start):
    return start(release)


def recommend(client, user, k=20, **params):
    response = client.get("/v1/recommendations", params={"user_id": user, "k": k, "explain": "true", **params})
    assert response.status_code == 200, response.text
    return response.json()


def items_of(body):
    return [int(item["item_id"][1:]) for item in body["items"]]


def of_category(service, *codes):
    items = service.funnel.release.items
    owners = np.repeat(np.arange(N_ITEMS), np.diff(items.category_offsets))
    return set(owners[np.isin(items.category_codes, codes)].tolist())


@pytest.mark.parametrize("user", ["u1", "nobody"])
def test_only_the_categories_that_were_asked_for(client, service, user):
    allowed = of_category(service, 1, 4)
    body = recommend(client, user, category=["c1", "c4"])
    assert set(items_of(body)) <= allowed and len(items_of(body)) == 20
    assert body["explain"]["counts"]["filtered_excluded"] == N_ITEMS - len(allowed)
    assert body["path"] == ("funnel" if user == "u1" else "popular")


@pytest.mark.parametrize("user", ["u1", "nobody"])
def test_only_items_that_are_young_enough(client, user):
    found = items_of(recommend(client, user, k=50, max_age_days=10))
    assert found and set(found) <= set(YOUNG) - {FUTURE_ITEM, *WITHHELD}
    seen_or_answered = len(found) + recommend(client, user, max_age_days=10)["explain"]["counts"]["seen_excluded"]
    assert seen_or_answered >= len(set(YOUNG) - {FUTURE_ITEM, *WITHHELD})


@pytest.mark.parametrize("user", ["u1", "nobody"])
def test_conditions_are_joined_and_fewer_items_come_back_rather_than_others(client, service, user):
    allowed = of_category(service, 2) & set(YOUNG) - {FUTURE_ITEM, *WITHHELD}
    known = service.funnel.release.user_index
    seen = set(service.funnel.release.state.touched(known[user]).tolist()) if user in known else set()
    assert set(items_of(recommend(client, user, k=50, category="c2", max_age_days=3))) == allowed - seen
    assert recommend(client, user, max_age_days=0.5)["items"] == []


def test_the_stale_popular_list_is_filtered_too(release, start):
    funnel = start(release).funnel
    later = AS_OF_MS + 20_000 * DAY_MS
    allowed = of_category(type("S", (), {"funnel": funnel}), 0)
    answer = funnel.recommend("nobody", 20, later, wanted=ItemFilter(categories=("c0",)))
    assert len(answer.items) == 20
    assert {int(item.item_id[1:]) for item in answer.items} <= allowed


def test_the_filtered_retrieval_is_the_best_of_what_is_allowed(client, service):
    release = service.funnel.release
    body = recommend(client, "u2", k=50, category="c3")
    moment = Moment(body["time_ms"], 2)
    query = release.candidate.embed(tower_inputs([release.state.history(2)], [moment], release.config, N_ITEMS))[0]
    allowed = of_category(service, 3) - set(release.state.touched(2).tolist()) - {FUTURE_ITEM, *WITHHELD}
    best = sorted(allowed, key=lambda item: -float(release.candidate.item_vectors[item] @ query))[:60]
    ranks = {int(item["item_id"][1:]): item["explain"].get("candidate", {}).get("rank") for item in body["items"]}
    retrieved = {item: rank for item, rank in ranks.items() if rank is not None}
    assert retrieved and all(best[rank] == item for item, rank in retrieved.items())
    assert body["explain"]["counts"]["retrieved"] == min(60, len(allowed))
