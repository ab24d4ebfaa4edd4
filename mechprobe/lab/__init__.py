"""The embedded lab: a tiny language model pre-trained from scratch, then post-trained in three ways.

Training and outcomes are real, small enough for two CPU cores, in the Hugging Face format. The transfer between skills
is a planted mechanism (elicitation by construction) that exists to test the tool.
"""
