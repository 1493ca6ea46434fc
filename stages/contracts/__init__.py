"""The lowest layer: types, files and errors that every other package shares.

This package imports nothing else of Sluice.
"""
