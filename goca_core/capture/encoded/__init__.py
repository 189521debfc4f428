"""Word maps of prompts that any node encodes: what ComfyUI's CLIP is given is noted, and read when somebody asks."""
