"""The online funnel: history, retrieval, the ranking stages, and the popular list.

Threads: the state is read in two short sections (the user's history and seen items, with the lists of the
candidate generators that read the state; the ranking features) and written by ``apply_event``, all under one lock. The
models run outside of it. What was applied before ``recommend`` was called is always taken into account; an
event that arrives while an answer is being made may or may not reach its features.

Shapes: B = 1 request, L history length, N items, D vector dimensions, n retrieved items, F features.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from serving.answer import Answer, AnsweredItem, AnswerPath, CandidateMixture, Place, Trace
from serving.clock import choose_clock, wall_clock_ms
from serving.errors import Fault, FieldError
from serving.events import Event
from serving.release import LoadedRelease
from stages.candidate.scorer import Blended, CandidateRequest, ranker_query
from stages.contracts.item_filter import FilterIndex, ItemFilter
from stages.contracts.ranking import RankingInputs
from stages.contracts.snapshot import NEVER_AVAILABLE_MS
from stages.contracts.sources import source_code
from stages.contracts.stage_runs import LoadedStage
from stages.contracts.tables import SERVING, ScoredItems
from stages.contracts.value_rules import apply_value_rules
from stages.features.history import Moment, TowerInputs, tower_inputs
from stages.features.ranking import ranking_features

MAX_ID_LENGTH = 256
UNKNOWN = -1
_NOTHING = np.empty(0, dtype=np.int64)
_SHOWN = 20
"""Categories that an error lists."""


class Funnel:
    """Answers requests from one release; owns the release's state and advances it by events."""

    def __init__(
        self,
        release: LoadedRelease,
        clock: Callable[[], int] | None = None,
        max_clock_skew_ms: int = 60_000,
    ) -> None:
        """Take over ``release``; only this funnel may change its state afterwards.

        Args:
            release: from ``load_release``.
            clock: the time in int ms UTC; None chooses as ``ServeConfig.clock`` does by default.
            max_clock_skew_ms: how far in the future the time of an event may lie; it then counts as now.
        """
        self.release = release
        self.clock = clock or choose_clock("auto", release.manifest.as_of_ms, None) or wall_clock_ms
        self._skew_ms = max_clock_skew_ms
        self._lock = threading.Lock()
        self._new_users: dict[str, int] = {}
        self._signals = {name: code for code, name in enumerate(release.meta.signals)}
        self._available_ms = release.items.available_from_ms(SERVING)
        self._n_withheld = int(release.items.withheld(SERVING).sum())
        self._filters = FilterIndex(release.items, release.meta.categories)
        indexed = release.candidate.indexed
        self._by_birth = indexed[np.argsort(self._available_ms[indexed], kind="stable")]
        self._births = self._available_ms[self._by_birth]

    @property
    def release_id(self) -> str:
        """The id of the release that answers."""
        return self.release.manifest.release_id

    @property
    def max_k(self) -> int:
        """The largest ``k`` that a request may have."""
        return self.release.manifest.funnel.max_k

    @property
    def _mixture(self) -> CandidateMixture:
        """What the scores of the stage ``candidate`` are."""
        if self.release.blend is None:
            return "index"
        return "quotas" if self.release.blend.mixture is None else "learned"

    def recommend(
        self,
        user_id: str,
        k: int,
        time_ms: int | None = None,
        explain: bool = False,
        context: Mapping[str, str] | None = None,
        wanted: ItemFilter | None = None,
    ) -> Answer:
        """Answer one request.

        Args:
            user_id: may be unknown.
            k: how many items, 1 to ``max_k``; fewer come back only if the user has seen nearly
                everything.
            time_ms: the request time, int ms UTC; None = now.
            explain: whether the items carry their score and rank at every stage.
            context: context of the request, by the names of the release's context columns; a value that the release
                does not know is taken as unknown.
            wanted: filter of the items that may be returned, also from the popular list; fewer than k are returned
                where fewer pass.

        Raises:
            FieldError: if ``user_id`` or ``k`` is out of range, or the release has no such column or
                category.
        """
        wanted = wanted or ItemFilter()
        self._check_request(user_id, k, context or {}, wanted)
        codes = self.release.state.context_codes(context or {})
        trace = self._begin(user_id, self.clock() if time_ms is None else time_ms, codes, wanted)
        path: AnswerPath = "popular" if trace.inputs is None else "funnel"
        if trace.inputs is not None:
            self._rank(trace, trace.inputs)
        ranked = trace.stages[-1][1] if trace.stages else ScoredItems(_NOTHING, np.empty(0, dtype=np.float32))
        found = min(k, len(ranked))
        filling = self._fill(trace, ranked.ids[:found], k - found)
        items = self._items(trace, ranked, found, filling, explain)
        trace.counts["filled"] = len(filling) if path == "funnel" else 0
        trace.counts["returned"] = len(items)
        trace.lap("answer")
        trace.timings_ms["total"] = sum(trace.timings_ms.values())
        return Answer(
            release_id=self.release_id,
            request_id=str(uuid.uuid4()),
            user_id=user_id,
            path=path,
            time_ms=trace.time_ms,
            items=items,
            counts=trace.counts,
            timings_ms=trace.timings_ms,
            explain=explain,
            mixture=self._mixture,
            bypassed=self.release.manifest.bypassed,
            newcomers=None if trace.inputs is not None else self.release.newcomers,
        )

    def apply_event(self, event: Event) -> None:
        """Advance the state by one event; the user's next answer takes it into account.

        An unknown user is added. The caller must not repeat an event: ids are not remembered here.

        Raises:
            FieldError: naming every wrong field; nothing is changed then.
        """
        now = self.clock()
        faults = self.event_faults(event, now)
        if faults:
            raise FieldError(faults)
        self.apply_logged(replace(event, event_time_ms=min(event.event_time_ms, now)))

    def apply_logged(self, event: Event) -> None:
        """Advance the state by an event that was checked before and whose time is final."""
        item, signal = self.release.item_index[event.item_id], self._signals[event.signal]
        with self._lock:
            user = self._user(event.user_id)
            if user is None:
                user = len(self.release.user_index) + len(self._new_users)
                self._new_users[event.user_id] = user
            state = self.release.state
            moment = state.context_values(state.context_codes(event.context))
            duration_s = float(self.release.items.duration_s[item])
            value = float(np.float32(event.value))  # as the events of a snapshot are
            value = apply_value_rules(
                self.release.meta.values, event.signal, value, duration_s, item, event.event_time_ms
            )
            state.apply(user, item, signal, value, event.event_time_ms, moment)

    def event_faults(self, event: Event, now_ms: int, prefix: str = "") -> list[Fault]:
        """Return everything that is wrong with an event, an empty list if nothing is."""
        latest = now_ms + self._skew_ms
        length = f"a string of 1 to {MAX_ID_LENGTH} characters"
        n_items = len(self.release.items)
        checks = (
            ("user_id", 1 <= len(event.user_id) <= MAX_ID_LENGTH, length),
            (
                "item_id",
                event.item_id in self.release.item_index,
                f"an item id of release {self.release_id} ({n_items} items){self._why_blocked(event.item_id)}",
            ),
            ("signal", event.signal in self._signals, "one of " + ", ".join(self._signals)),
            ("value", *self._value_check(event)),
            ("event_time_ms", 0 <= event.event_time_ms <= latest, f"int ms UTC from 0 (1970) to {latest} (now)"),
        )
        faults = [Fault.of(prefix + name, getattr(event, name), allowed) for name, good, allowed in checks if not good]
        return faults + self._context_faults(event.context, prefix)

    def _value_check(self, event: Event) -> tuple[bool, str]:
        """Return whether an event's value is allowed, and which values are."""
        allowed = self.release.value_ranges.get(event.signal)
        if allowed is None:  # an unknown signal, or an exposure, whose value nothing reads
            return math.isfinite(event.value) and abs(event.value) < 1e30, "a finite number below 1e30"
        return allowed.holds(event.value), f"{allowed} for signal {event.signal!r}"

    def _context_faults(self, context: Mapping[str, str], prefix: str = "") -> list[Fault]:
        names = [column.name for column in self.release.meta.context]
        allowed = f"one of the release's context columns: {', '.join(names) or 'it has none'}"
        return [
            Fault.of(f"{prefix}context.{name}", value, allowed) for name, value in context.items() if name not in names
        ]

    def _why_blocked(self, item_id: str) -> str:
        reason = self.release.blocked.get(item_id)
        return "" if reason is None else f"; this one is blocked by the content policy: {reason}"

    def contains(self, event: Event) -> bool:
        """Return whether the user has already touched the event's item."""
        with self._lock:
            user = self._user(event.user_id)
            return user is not None and self.release.state.has_touched(user, self.release.item_index[event.item_id])

    def known_users(self, limit: int) -> list[str]:
        """Return up to ``limit`` user ids with a history, spread over the id map."""
        users = list(self.release.user_index.items())
        step = max(1, len(users) // (4 * limit))
        with self._lock:
            found = [
                name
                for name, index in users[::step]
                if 1 <= len(name) <= MAX_ID_LENGTH and len(self.release.state.touched(index))
            ]
        return found[:: max(1, len(found) // limit)][:limit]

    def _user(self, user_id: str) -> int | None:
        index = self.release.user_index.get(user_id)
        return self._new_users.get(user_id) if index is None else index

    def _check_request(self, user_id: str, k: int, context: Mapping[str, str], wanted: ItemFilter) -> None:
        faults = self._context_faults(context)
        known = self._filters.categories
        allowed = f"one of the release's {len(known)} categories: {', '.join(known[:_SHOWN])}"
        allowed += ", …" if len(known) > _SHOWN else ""
        faults += [Fault.of("category", name, allowed) for name in wanted.categories if name not in known]
        if not 1 <= len(user_id) <= MAX_ID_LENGTH:
            faults.append(Fault.of("user_id", user_id, f"a string of 1 to {MAX_ID_LENGTH} characters"))
        if not 1 <= k <= self.max_k:
            faults.append(Fault.of("k", k, f"an integer from 1 to {self.max_k}"))
        if faults:
            raise FieldError(faults)

    def _begin(self, user_id: str, time_ms: int, context: tuple[int, ...], wanted: ItemFilter) -> Trace:
        """Read the user's history and seen items, as copies, and what the filter allows."""
        trace = Trace(UNKNOWN, time_ms, _NOTHING, inputs=None, available_ms=self._available_ms, context=context)
        if wanted:
            trace.mask = self._filters.mask(wanted, time_ms)
            trace.available_ms = np.where(trace.mask, self._available_ms, NEVER_AVAILABLE_MS)
            trace.counts["filtered_excluded"] = int(np.count_nonzero(~trace.mask))
        state, config = self.release.state, self.release.config
        with self._lock:
            user = self._user(user_id)
            if user is not None:
                trace.user, trace.seen = user, np.array(state.touched(user), dtype=np.int64)
                history = state.history(user)
                if len(history.items):
                    moment = Moment(time_ms, user, context)
                    trace.inputs = tower_inputs([history], [moment], config, len(self.release.items))
                    self._read_state_lists(trace, history.items)
        trace.counts["catalogue"] = len(self.release.items)
        trace.counts["withheld_excluded"] = self._n_withheld
        trace.counts["seen_excluded"] = len(trace.seen)
        trace.lap("history")
        return trace

    def _read_state_lists(self, trace: Trace, history: np.ndarray) -> None:
        """Get the lists of the generators that read the state; the caller holds the lock."""
        release = self.release
        if release.blend is not None:
            trace.request = CandidateRequest(history, trace.time_ms, trace.context, trace.seen, trace.available_ms)
            length = release.blend.list_length(release.manifest.funnel.candidate_k)
            trace.state_lists = release.blend.read(trace.request, release.state, length)

    def _retrieve(self, trace: Trace, query_BD: np.ndarray) -> Blended:
        """Search the index, and mix in the lists of the other generators."""
        release, k = self.release, self.release.manifest.funnel.candidate_k
        first = int(np.searchsorted(self._births, trace.time_ms, side="right"))
        to_come, to_come_ms = self._by_birth[first:], self._births[first:]
        excluded = np.union1d(trace.seen, to_come) if len(to_come) else trace.seen
        length = k if release.blend is None else release.blend.list_length(k)
        tower = release.candidate.search(query_BD, length, [excluded], [trace.mask])[0]
        trace.counts["not_yet_available"] = int((to_come_ms < NEVER_AVAILABLE_MS).sum())
        blended = Blended.of_one(tower, "tower")
        if release.blend is not None and trace.request is not None:
            trace.lap("index")
            lists = release.blend.complete(trace.state_lists, trace.request, release.state, tower, length)
            blended = release.blend.mix(lists, k, len(trace.request.history))
            for name in release.blend.names:
                named = blended.source == source_code(name)
                trace.counts[f"retrieved_{name}"] = int(np.count_nonzero(named))
        trace.counts["retrieved"] = len(blended.items)
        return blended

    def _rank(self, trace: Trace, inputs: TowerInputs) -> None:
        """Retrieve and rank; appends (stage, its output) to the trace."""
        release = self.release
        query_BD = release.candidate.embed(inputs)
        trace.lap("embed")
        trace.blended = self._retrieve(trace, query_BD)
        retrieved = trace.blended.items
        trace.stages.append(("candidate", retrieved))
        trace.lap("candidate")
        if not len(retrieved):
            return
        request = RankingInputs(
            retrieved.ids,
            ranker_query(query_BD),
            release.candidate.item_vectors,
            lambda: self._features(trace, retrieved),
        )
        rows = np.arange(len(retrieved))
        for stage in release.stages:
            rows = self._run_stage(trace, request, stage, rows)

    def _run_stage(self, trace: Trace, request: RankingInputs, stage: LoadedStage, rows: np.ndarray) -> np.ndarray:
        """Run a stage on rows and return the rows that it passes on, see ``LoadedStage.run``.

        A bypassed stage scores as well: another stage may have been trained on its scores.

        Args:
            trace: of the request.
            request: what the stages read.
            stage: with its scorer.
            rows: int64 ``[m]``, rows of the retrieved items, in the order of the stage before.
        """
        name, passed = stage.row.name, stage.run(request, rows, self.release.manifest.funnel).passed
        if stage.is_used:
            trace.stages.append((name, ScoredItems(request.ids[passed], request.scores[name][passed])))
            trace.counts[f"after_{name}"] = len(passed)
        trace.lap(name)
        return passed

    def _features(self, trace: Trace, retrieved: ScoredItems) -> np.ndarray:
        """Return the ranking features, float32 ``[n, F]``, as the state stands now."""
        release = self.release
        with self._lock:
            features = ranking_features(
                release.state,
                trace.user,
                trace.time_ms,
                retrieved.ids,
                retrieved.scores,
                np.arange(len(retrieved), dtype=np.int32),
                release.candidate.item_vectors,
                trace.context,
                None if trace.blended is None else trace.blended.sources,
            )
        trace.lap("features")
        return features

    def _fill(self, trace: Trace, chosen: np.ndarray, missing: int) -> ScoredItems:
        """Return up to ``missing`` popular items that are neither seen nor chosen.

        Where every live count has decayed to 0, the release's own popular list comes first. A request without history
        gets a generator's items before the popular ones, where the release's list for newcomers is a generator's.
        """
        if missing <= 0:
            return ScoredItems(_NOTHING, np.empty(0, dtype=np.float32))
        release, excluded = self.release, np.concatenate([trace.seen, chosen])
        with self._lock:
            asked = trace.time_ms, missing, excluded, trace.available_ms
            popular = release.state.popular(*asked, half_life=release.popular_half_life)
            if not popular.scores.any():
                popular = self._stale_list(popular, trace, missing, excluded)
            if trace.inputs is None and release.blend is not None:
                request = CandidateRequest(_NOTHING, trace.time_ms, trace.context, trace.seen, trace.available_ms)
                popular = release.blend.for_newcomer(request, release.state, popular, missing)
        trace.lap("popular")
        return popular

    def _stale_list(self, popular: ScoredItems, trace: Trace, missing: int, excluded: np.ndarray) -> ScoredItems:
        fallback = self.release.fallback
        born = trace.available_ms[fallback.ids] <= trace.time_ms
        kept = np.flatnonzero(born & ~np.isin(fallback.ids, excluded))[:missing]
        rest = popular.ids[~np.isin(popular.ids, fallback.ids[kept])][: missing - len(kept)]
        scores = np.concatenate([fallback.scores[kept], np.zeros(len(rest), dtype=np.float32)])
        return ScoredItems(np.concatenate([fallback.ids[kept], rest]), scores)

    def _items(
        self, trace: Trace, ranked: ScoredItems, found: int, filling: ScoredItems, explain: bool
    ) -> tuple[AnsweredItem, ...]:
        ids, catalogue = ranked.ids[:found], self.release.items
        nothing: list[dict[str, Place]] = [{} for _ in range(found)]
        places, named_by = (trace.places(ids), trace.named_by(ids)) if explain else (nothing, nothing)
        first = trace.first_generators(ids)
        items = []
        for rank, (index, score) in enumerate(zip(ids, ranked.scores, strict=False)):
            item_id, title = str(catalogue.item_id[index]), str(catalogue.title[index])
            items.append(AnsweredItem(item_id, title, float(score), rank, first[rank], places[rank], named_by[rank]))
        for place, (index, score) in enumerate(zip(filling.ids, filling.scores, strict=True)):
            item_id, title = str(catalogue.item_id[index]), str(catalogue.title[index])
            popular = {"popular": Place(float(score), place)} if explain else {}
            items.append(AnsweredItem(item_id, title, float(score), found + place, "popular", popular))
        return tuple(items)
