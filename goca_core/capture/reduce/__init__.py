"""Reduce attention calls to small maps while their tensors are in memory."""
