#!/usr/bin/env python3
"""Run `comfy node validate`, what the registry asks of a pack, and fail on its warnings.

It only warns, with exit status zero, and keeps its settings in the home directory; here it gets a home of its own.

    python scripts/check_registry.py <the comfy command>
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    command = [str(Path(sys.argv[1]).absolute()), "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "COLUMNS": "120", "DO_NOT_TRACK": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    said = (done.stdout + done.stderr).strip()
    print(said)
    if done.returncode == 0 and "warning" not in said.lower():
        return 0
    print("comfy node validate: not clean (above)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
