"""The part of the method that runs inside ComfyUI: it records attention and maps tokens to prompt words.

Messages go to the logger "goca". Set the environment variable ``GOCA_DEBUG=1`` to set this logger to DEBUG: it then logs
each recorded sampling run and each recorded model call.
"""

import logging
import os

if os.environ.get("GOCA_DEBUG"):
    logging.getLogger("goca").setLevel(logging.DEBUG)
