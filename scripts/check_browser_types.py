#!/usr/bin/env python3
"""Check the scripts of web/js against the types that the editor's front end gives of itself.

    python scripts/check_browser_types.py .host/check/js      # as `make check` does; the folder keeps what npm fetched

Checker and types are npm's, pinned below; neither users nor the scripts themselves need them. Where there is no npm, or it
cannot fetch them, this says so and checks nothing. The types are the published ones nearest to the oldest front end that
the pack works with.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"@comfyorg/comfyui-frontend-types": "1.45.6", "typescript": "5.9.3"}
# What the scripts import from the host, which is not there when they are checked.
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
    """Have npm put the packages into a folder, once. Whether they are there now."""
    wanted = json.dumps({"private": True, "devDependencies": PACKAGES}, indent=1)
    done = folder / "done.json"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return True
    npm = shutil.which("npm")
    if npm is None:
        print("web/js: types not checked, there is no npm")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(wanted, encoding="utf-8")
    # The types ask for packages that the front end is built with, which are not needed to read them.
    command = [npm, "install", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--silent"]
    try:
        failed = subprocess.run(command, cwd=folder, timeout=120).returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        print("web/js: types not checked, npm could not fetch them")
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
