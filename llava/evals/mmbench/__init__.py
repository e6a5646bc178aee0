"""MMBench (Liu et al., arXiv 2307.06281) and CCBench: rows -> prompts -> answers in shards -> one score."""
