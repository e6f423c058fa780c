"""A checkpoint becomes a folder that a runtime takes: read, quantise, write, and forget."""
