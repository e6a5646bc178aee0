"""A runtime without torch, for tests of the launcher alone: real processes, signals, files and exit codes."""
