"""``python -m launcher`` is ``llavajob``."""

from launcher.cli import main

if __name__ == "__main__":
    main()
