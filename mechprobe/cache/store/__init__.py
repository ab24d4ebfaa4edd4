"""The activation store on disk: HDF5 shards, the token stream, and readers of both."""
