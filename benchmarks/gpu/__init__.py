"""What the trainer does on one NVIDIA card: `bash benchmarks/gpu.sh` runs the steps and keeps a table."""
