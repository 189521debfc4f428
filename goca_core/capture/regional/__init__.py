"""Regional prompts: from masks that are there, or from masks recorded on the way."""
