"""What the candidate generators read of a recipe's section ``sources``."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SectionT = TypeVar("SectionT", bound=Config)


class GeneratorSettings(Config):
    """Settings that several generators share, and the section ``sources.<name>`` of each one that has settings.

    Attributes:
        history_length: newest items of a history that ``covisitation``, ``ease``, ``ials``, ``content`` and
            ``item_knn`` read.
        history_decay: the weight of position r (0 = newest) is ``exp(-r / history_decay)``.
        neighbours: neighbours that ``ease``, ``ials``, ``directed_ridge`` and ``content`` keep for each item;
            ``item_knn`` keeps up to ten times as many.
        covisitation_smoothing: added to an item's popularity in its normalisation, so that one link with a rare item
            does not outweigh many links with a common one.
    """

    # Sections are kept as further keys: ``SourcesConfig`` parses them, and refuses a key that is no section.
    model_config = ConfigDict(extra="allow")

    history_length: int = Field(default=20, ge=1)
    history_decay: Positive = 5.0
    neighbours: int = Field(default=100, ge=1)
    covisitation_smoothing: NotNegative = 10.0

    def section(self, name: str, kind: type[SectionT]) -> SectionT:
        """Return the section of a generator.

        Args:
            name: of the generator.
            kind: type of its section.

        Raises:
            ConfigError: if there is no section of that type.
        """
        found = (self.model_extra or {}).get(name)
        if not isinstance(found, kind):
            raise ConfigError(f"sources.{name} = {found!r}: allowed is a {kind.__name__}")
        return found
