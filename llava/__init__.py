"""llavajob's runtime: trains, converts and evaluates LLaVA models. It never imports ``launcher``."""

__version__ = "0.1.0"
