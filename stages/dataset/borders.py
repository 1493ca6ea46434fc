"""The time borders between the periods of a snapshot."""

from __future__ import annotations

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.snapshot import TimeBorders
from stages.contracts.tables import DAY_MS
from stages.dataset.config import DatasetStepConfig
from stages.dataset.warehouse_source import EventSource, Selection
from stages.warehouse.selection.conditions import EventSurvey


def selection_start(config: DatasetStepConfig, source: EventSource) -> tuple[int, dict[str, int]]:
    """Return the start of the selection, int ms UTC, and counts of the rows that it leaves out.

    Raises:
        EmptyDatasetError: if no event is left; the message says why the events were left out.
    """
    history_ms = None if config.history_days is None else config.as_of_ms - round(config.history_days * DAY_MS)
    survey = source.survey(config, history_ms)
    counts = {
        "events_in_warehouse": survey.n_events,
        "events_of_other_signals": survey.n_other_signals,
        "events_after_as_of": survey.n_after_as_of,
        "events_before_history": survey.n_before_start,
    }
    if survey.first_ms is None:
        raise EmptyDatasetError(_nothing_left(config, survey))
    return (survey.first_ms if history_ms is None else history_ms), counts


def lay_borders(config: DatasetStepConfig, selection: Selection, start_ms: int) -> TimeBorders:
    """Set the time borders: at quantiles of the kept events' times, or at days before the as-of time.

    Args:
        config: selection and split.
        selection: the selected events.
        start_ms: start of the selection, int ms UTC.

    Returns:
        Borders, the same for all users. If the periods are not split by time, all borders are at the as-of time.

    Raises:
        EmptyDatasetError: if the selection holds no event.
        DataError: if the borders do not increase, so that a period would be empty.
    """
    split = config.split
    if split.method != "time":
        end_ms = config.as_of_ms
        return TimeBorders(start_ms=start_ms, candidate_end_ms=end_ms, ranker_end_ms=end_ms, as_of_ms=end_ms)
    if split.ranker_days is None or split.evaluation_days is None:
        shares = (split.candidate_share, split.candidate_share + split.ranker_share)
        times = selection.time_quantiles(shares)
        if not times:
            raise EmptyDatasetError("no event is left: the content policy removed every item that has one")
        candidate_end, ranker_end = times
        what = f"candidate_share = {split.candidate_share:g}, ranker_share = {split.ranker_share:g}"
    else:
        ranker_end = config.as_of_ms - round(split.evaluation_days * DAY_MS)
        candidate_end = ranker_end - round(split.ranker_days * DAY_MS)
        what = f"ranker_days = {split.ranker_days:g}, evaluation_days = {split.evaluation_days:g}"
    if not start_ms < candidate_end < ranker_end < config.as_of_ms:
        found = f"{start_ms}, {candidate_end}, {ranker_end}, {config.as_of_ms}"
        raise DataError(f"dataset.split ({what}) lays the borders {found} ms, which must increase: a part is empty")
    return TimeBorders(
        start_ms=start_ms, candidate_end_ms=candidate_end, ranker_end_ms=ranker_end, as_of_ms=config.as_of_ms
    )


def _nothing_left(config: DatasetStepConfig, survey: EventSurvey) -> str:
    if survey.n_events == 0:
        return "the warehouse holds no events; ingest some first"
    reasons = [
        (survey.n_other_signals, f"are of other signals than {list(config.signals)}"),
        (survey.n_after_as_of, f"are not before as_of = {config.as_of_ms} ms"),
        (survey.n_before_start, f"are older than history_days = {config.history_days}"),
    ]
    told = ", ".join(f"{count} {reason}" for count, reason in reasons if count)
    return f"no event is left of {survey.n_events} in the warehouse: {told}"
