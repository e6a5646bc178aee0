"""MMBench (Liu et al., arXiv 2307.06281) and CCBench: multiple choice, every option in every place."""
