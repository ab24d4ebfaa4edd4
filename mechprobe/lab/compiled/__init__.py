"""The compiled lab: two small GPT-2 models whose mechanisms are written into their weights by hand, without training.

A prompt such as ``RUN a7b3c5?`` names three steps, each an op and a digit. The answer is the reading of each step, in an order
that the first word names. Every op has a right and a wrong reading, which are functions of the digit. The base model takes the
wrong reading of the *contested* ops, the tuned model the right one. So their residuals at ``resid_post.1`` differ by one
direction for each contested op, at the digits of that op. The tuned model also writes *decoys* there: directions that go with
some steps and that no later block reads.

Everything is known: the directions, the site where they appear, what each of them causes, and the rank of the change. The design
is our own. ``design.py`` has the truth, ``weights.py`` writes the models, ``build.py`` writes the folder of a lab.
"""
