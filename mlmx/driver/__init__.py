"""What starts work: the chain of stages, the launcher, the leases. Imports neither torch nor transformers."""
