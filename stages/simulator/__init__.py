"""A synthetic world with known true preferences: users, items and a log of sessions."""

from stages.simulator.config import WorldConfig
from stages.simulator.world import World
from stages.simulator.write import write_world

__all__ = ["World", "WorldConfig", "write_world"]
