"""Images of masks and heat maps: overlays, contact sheets, colours."""
