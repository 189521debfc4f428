"""One attention call reduced to small maps while its tensors are alive."""
