"""The words of a prompt, their tokens, and the phrases found in them."""
