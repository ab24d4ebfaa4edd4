"""Scorers: a response and the right answer in; right, wrong or unparsed out."""
