"""The part of the method that touches a running ComfyUI: recording attention, and reading the host's tokens."""
