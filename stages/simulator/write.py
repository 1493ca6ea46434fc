"""Write a world to files that ``sluice ingest`` reads."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.files import atomic_directory, write_json
from stages.simulator.config import SIGNALS, WorldConfig
from stages.simulator.sessions import event_batches
from stages.simulator.world import World

EVENTS_FILE, ITEMS_FILE, USERS_FILE, TRUTH_FILE = "events.parquet", "items.parquet", "users.parquet", "truth.json"
EVENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("signal", pa.string()),
        ("value", pa.float64()),
        ("event_time_ms", pa.int64()),
    ]
)


def write_world(config: WorldConfig, directory: Path) -> dict[str, int]:
    """Write ``events.parquet``, ``items.parquet``, ``users.parquet`` and ``truth.json``.

    The directory appears when it is complete. An existing directory is not changed, so use another
    directory for each configuration.

    Args:
        config: the world.
        directory: the directory to write to.

    Returns:
        Number of events by signal.
    """
    world = World(config)
    counts = dict.fromkeys(SIGNALS, 0)
    with atomic_directory(directory) as temporary:
        pq.write_table(world.items(), temporary / ITEMS_FILE, compression="zstd")  # type: ignore[no-untyped-call]
        pq.write_table(world.users(), temporary / USERS_FILE, compression="zstd")  # type: ignore[no-untyped-call]
        with pq.ParquetWriter(temporary / EVENTS_FILE, EVENTS_SCHEMA, compression="zstd") as writer:  # type: ignore[no-untyped-call]
            for batch in event_batches(world):
                writer.write_batch(batch)  # type: ignore[no-untyped-call]
                for entry in batch.column("signal").value_counts().to_pylist():
                    counts[entry["values"]] += entry["counts"]
        truth = {
            "config": config.model_dump(mode="json"),
            "counts": counts,
            "duplicates": {"exact": world.duplicates("exact"), "near": world.duplicates("near")},
            "inactive_users": world.inactive_users(),
        }
        write_json(temporary / TRUTH_FILE, truth)
    return counts
