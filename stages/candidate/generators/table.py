"""Candidate generators by name: the classes that ``stages.contracts.sources.GENERATORS`` points to."""

from __future__ import annotations

from importlib import import_module

from stages.candidate.generators.generator import CandidateGenerator
from stages.contracts.errors import ConfigError
from stages.contracts.sources import GENERATORS, LAST_CODE

TOWER = "tower"
"""The two-tower index: always in use, and not a ``CandidateGenerator``."""


def generator_names() -> tuple[str, ...]:
    """Return the names that ``sources.names`` may hold, in the order of their codes."""
    rows = sorted(GENERATORS.items(), key=lambda row: row[1].code)
    return tuple(name for name, row in rows if row.path or name == TOWER)


def generator_class(name: str) -> type[CandidateGenerator]:
    """Import the class of a generator.

    Raises:
        ConfigError: if no generator beside the index has that name, or its row does not lead to its class.
    """
    row = GENERATORS.get(name)
    if row is None or not row.path:
        known = [each for each in generator_names() if each != TOWER]
        raise ConfigError(f"candidate generator {name!r}: unknown, allowed are {', '.join(known)}")
    taken = [other for other, its in GENERATORS.items() if its.code == row.code and other != name]
    if taken or not 0 <= row.code <= LAST_CODE:
        owner = f"; {taken[0]!r} has it" if taken else ""
        raise ConfigError(
            f"candidate generator {name!r}: code = {row.code}: allowed are codes from 0 to {LAST_CODE} that no other "
            f"generator has{owner}"
        )
    module, _, attribute = row.path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"candidate generator {name!r}: {row.path} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, CandidateGenerator) and found.name == name):
        raise ConfigError(f"candidate generator {name!r}: {row.path} is no CandidateGenerator of that name")
    return found
