"""Stands in for a conversion."""

import sys
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
Path(config["convert"]["output"]).mkdir(parents=True)
