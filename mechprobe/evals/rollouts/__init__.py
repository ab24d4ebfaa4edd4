"""Responses that another engine generated: files of finished rollouts, and inference servers."""
