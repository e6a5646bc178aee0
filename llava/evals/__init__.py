"""Benchmarks, one folder each, and beside them what all share: rows -> prompts -> answers in shards -> one score."""
