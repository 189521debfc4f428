"""LoRAs that act only inside masks: from masks that are there, or from masks recorded on the way."""
