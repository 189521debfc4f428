"""The GoCA method: attention maps in, object masks out. Importable without ComfyUI."""
