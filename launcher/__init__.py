"""llavajob's launcher: decides what runs where. It never imports torch, transformers or ``llava``."""

__version__ = "0.1.0"
