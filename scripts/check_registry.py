#!/usr/bin/env python3
"""Run `comfy node validate`, the registry's check of a node pack, and fail if it prints warnings.

    python scripts/check_registry.py <the comfy command>

The command itself exits with status zero even if it warns. It stores settings in the home directory, so it gets a temporary
one here.
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
    output = (done.stdout + done.stderr).strip()
    print(output)
    if done.returncode == 0 and "warning" not in output.lower():
        return 0
    print("check_registry: `comfy node validate` reported problems (see above)", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
