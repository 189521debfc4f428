#!/usr/bin/env python3
"""Check the scripts in web/js against the published types of ComfyUI's frontend.

    python scripts/check_browser_types.py .host/check/js      # as `make check` does; npm installs into this folder

The type checker and the types come from npm and are pinned below. Users do not need them, and the scripts run without them.
If npm is missing or cannot fetch them, the script says so and checks nothing. The types are the published version closest to
the oldest frontend that the pack supports.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"@comfyorg/comfyui-frontend-types": "1.45.6", "typescript": "5.9.3"}
# What the scripts import from ComfyUI, which is not available during the check.
HOST = """\
declare module "*/scripts/app.js" { export const app: import("@comfyorg/comfyui-frontend-types").ComfyApp; }
declare module "*/scripts/api.js" { export const api: import("@comfyorg/comfyui-frontend-types").ComfyApi; }
"""
OPTIONS = {
    "allowJs": True,
    "checkJs": True,
    "noEmit": True,
    "target": "es2023",
    "lib": ["es2023", "dom", "dom.iterable"],
    "module": "esnext",
    "moduleResolution": "bundler",
    "skipLibCheck": True,
    "noUnusedLocals": True,
    "types": [],
}


def fetch(folder: Path) -> bool:
    """Install the npm packages into a folder, unless they are there already. Returns whether they are there."""
    wanted = json.dumps({"private": True, "devDependencies": PACKAGES}, indent=1)
    done = folder / "done.json"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return True
    npm = shutil.which("npm")
    if npm is None:
        print("web/js: types not checked, because npm is not installed")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(wanted, encoding="utf-8")
    # The types list the frontend's build packages as peer dependencies, which the check does not need.
    command = [npm, "install", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--silent"]
    try:
        failed = subprocess.run(command, cwd=folder, timeout=120).returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        print("web/js: types not checked, because npm could not fetch them")
        return False
    done.write_text(wanted, encoding="utf-8")
    return True


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    if not fetch(folder):
        return 0
    (folder / "host.d.ts").write_text(HOST, encoding="utf-8")
    config = {"compilerOptions": OPTIONS, "files": ["host.d.ts"], "include": [f"{ROOT.as_posix()}/web/js/*.js"]}
    (folder / "tsconfig.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    return subprocess.run([shutil.which("node") or "node", str(compiler), "-p", str(folder)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
