"""From our model to a folder that transformers, vLLM and the evaluation toolkits load."""
