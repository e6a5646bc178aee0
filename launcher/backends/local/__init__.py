"""The embedded backend: a detached supervisor per run is the scheduler of this machine."""
