"""The offline funnel: every step from raw interactions to a published release."""

__version__ = "0.1.0"
