"""The Kubernetes backend: PyTorchJobs and Jobs on a cluster."""
