"""Speed and memory of mechprobe against its peers; see README.md here and docs/speed.md for the results."""
