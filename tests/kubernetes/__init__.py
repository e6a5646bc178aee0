"""Tests against a real Kubernetes: one node with the training operator on this host."""
