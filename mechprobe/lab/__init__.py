"""The embedded lab: a tiny language model that is pre-trained from scratch and then post-trained in three ways.

Training and outcomes are real, but small enough for two CPU cores; models are saved in the Hugging Face format. The transfer
between skills is planted by construction, to test the tool.

The entry point is ``builder.py`` (`build`), the settings are in ``recipe.py``, and the measured results are made in
``results.py`` and printed by ``summary.py``, which also finds the shipped lab.

``compiled/`` writes another lab by hand, without training, in which everything is known.
"""
