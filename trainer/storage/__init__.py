"""Bytes that survive a power cut: files, safetensors, fragments, and the names of a run directory."""
