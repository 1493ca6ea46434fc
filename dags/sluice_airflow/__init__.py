"""What every DAG of this folder shares: retries, step tasks and the failure alert."""
