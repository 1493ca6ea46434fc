"""The ground floor: types, files and errors that every other package agrees on.

This package imports nothing else of Sluice.
"""
