"""From records and pictures to micro-batches."""
