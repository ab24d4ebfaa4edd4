"""Select the features that go with generalization, and matched control sets."""
