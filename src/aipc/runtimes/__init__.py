"""One file a runtime: token ids in, token ids out."""
