"""Calls the product's compiled functions on a small made-up log, so that no job and no request waits for the compiler.

A function is compiled for the types of its arguments, and kept for the kind of processor: see
``stages.contracts.compiled``.
"""
