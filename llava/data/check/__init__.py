"""Is everything there that a recipe learns from and is measured on, and can it be read? ``llava data check``."""
