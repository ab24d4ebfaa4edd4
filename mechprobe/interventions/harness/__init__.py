"""Tasks of lm-evaluation-harness under the edits of a selection, on the harness' own metrics."""
