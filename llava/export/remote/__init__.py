"""Files that travel with exported weights: other programs import them from the folder, without this package."""
