"""``python -m llava``: the same as the command ``llava``."""

from llava.cli import main

if __name__ == "__main__":
    main()
