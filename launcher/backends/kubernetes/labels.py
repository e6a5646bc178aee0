"""The labels and annotations that llavajob puts on its objects and pods, and goes by."""

from __future__ import annotations

MANAGED_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "llavajob"
"""What stands in the label above."""
RUN_LABEL = "llavajob/run"
RUN_ID_LABEL = "llavajob/run-id"
"""The run's id: names are used again, by others too. Runs of older versions and plans sent by hand have none."""
STEP_LABEL = "llavajob/step"
CONDUCTOR = "conductor"
"""What stands in the conductor's step label."""
FOLDER_ANNOTATION = "llavajob/folder"
"""The run's folder as pods see it; with the run's name it tells runs of one name apart."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
OURS = ("llavajob", "training.kubeflow.org", "batch.kubernetes.io", "job-name", "controller-uid")
"""What belongs to llavajob, the operator or Kubernetes: whole domains, or single keys."""
