"""Benchmarks, one folder each."""
