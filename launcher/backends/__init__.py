"""The only files that talk to schedulers: one folder or file for each."""
