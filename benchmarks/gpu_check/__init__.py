"""One command that checks and measures mechprobe on a GPU in eight minutes; docs/gpu.md says how to run it on a bare machine."""
