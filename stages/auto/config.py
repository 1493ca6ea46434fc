"""Configuration of ``auto``: a recipe's section, and the step ``choose_settings``."""

from __future__ import annotations

from stages.contracts.config import Config
from stages.contracts.touches import EXPOSURE_SIGNALS


class AutoConfig(Config):
    """Whether settings that the recipe leaves out follow from the data, see docs/recipes.md.

    Attributes:
        choose: let the step ``choose_settings`` fill in what the sections ``candidate``, ``features`` and ``sources``
            leave out. A value that a recipe or ``--set`` gives is never changed.
        ordered: whether the order of a user's events says what he did first. None: it does, unless
            ``dataset.split.method`` is ``given``, where the order of a file may be any.
        chosen: reason by key of each chosen value; filled in by the step.
    """

    choose: bool = False
    ordered: bool | None = None
    chosen: dict[str, str] = {}


class ChooseSettingsConfig(Config):
    """Configuration of the step ``choose_settings``.

    Attributes:
        auto: the recipe's section.
        encoder: the encoder that the recipe gives, None if it gives none.
        sources: the generators that the recipe gives, None if it gives none.
        exposure_signals: signals that are not touches.
    """

    auto: AutoConfig
    encoder: str | None = None
    sources: tuple[str, ...] | None = None
    exposure_signals: tuple[str, ...] = EXPOSURE_SIGNALS
