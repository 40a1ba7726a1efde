"""Starts `offshoot serve` with the bundled model on a free port and lets the clients that most
programs use ask it: see README.md. Needs python3 with pip and venv, node with npm, and Offshoot
built."""

import argparse
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Between two lines of the server, loading included.
START_S = 120
END_S = 60
# Registries fail now and then: so many more tries, after these pauses.
PAUSES_S = (3, 10, 30)
# The exit code (sysexits' EX_TEMPFAIL) that says: no registry answers, so nothing was checked.
UNREACHABLE = 75


def install(folder, files, command, probe):
    """Runs the command that installs what these files name, unless it has done so in this folder.
    If it fails, and no registry answers `probe`, the program ends with UNREACHABLE."""
    done, wanted = folder / "installed", "".join((HERE / name).read_text() for name in files)
    if done.exists() and done.read_text() == wanted:
        return
    done.unlink(missing_ok=True)
    for pause_s in (*PAUSES_S, None):
        if subprocess.run(command, cwd=folder).returncode == 0:
            done.write_text(wanted)
            return
        if pause_s is not None:
            print(f"installing failed, again in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
    if subprocess.run(probe, cwd=folder, capture_output=True).returncode == 0:
        sys.exit(f"the registry answers, but these cannot be installed: {', '.join(files)}")
    print("no package registry answers: nothing was checked", file=sys.stderr)
    sys.exit(UNREACHABLE)


def pypi(folder, files=("requirements.txt", "constraints.txt"), script="checks.py"):
    """The command that runs the checks of the Python clients, installed below this folder."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        try:
            venv.create(folder, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(folder)
            sys.exit("python3 makes no virtual environment: install its venv "
                     "(Debian and Ubuntu: apt-get install python3-venv), or say "
                     "--without pypi --without schema")
    pip = [python, "-m", "pip"]
    install(folder, files, [*pip, "install", "--quiet", "--constraint", HERE / files[1],
                            "--requirement", HERE / files[0]], [*pip, "index", "versions", "pip"])
    return [python, HERE / script]


def schema(folder):
    """The same with schemathesis, apart from the clients: it needs other versions of theirs."""
    return pypi(folder, ("requirements-schema.txt", "constraints-schema.txt"), "schema.py")


def npm(folder):
    """The command that runs the checks of the npm clients, installed in this folder. Node looks for
    packages beside the scripts that import them: the scripts are copied there."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        sys.exit("node or npm is missing: install both, node 18 or newer "
                 "(Debian and Ubuntu: apt-get install nodejs npm), or say --without npm")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*HERE.glob("*.mjs"), *HERE.glob("package*.json")]:
        shutil.copy(path, folder)
    # npm's own tries of each package would add up to minutes where there is no network.
    brief = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    install(folder, ["package.json", "package-lock.json"],
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", *brief],
            [npm, "ping", *brief])
    return [node, folder / "checks.mjs"]


SUITES = {"pypi": pypi, "npm": npm, "schema": schema}


def start(program, keys, home):
    """A server and its address."""
    environment = {**os.environ, "OFFSHOOT_HOME": str(home)}
    command = [program, "serve", "demo", "--port", "0", "--api-key-file", keys, "--quiet"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    for line in server.stderr:
        sys.stderr.write(line)
        if "listening on " in line:
            return server, line.split("listening on ")[1].strip()
    sys.exit(f"the server ended with {server.wait(START_S)} before it listened")


def run(command, folder, environment):
    """What the checks of a suite report; a suite that ends early adds a failed one."""
    suite = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=folder, env=environment, text=True)
    reports = []
    for line in suite.stdout:
        if line.startswith('{"client":'):
            reports.append(json.loads(line))
        else:  # a client that talks
            sys.stderr.write(line)
    if suite.wait() != 0:
        error = f"{pathlib.Path(command[-1]).name} ended with {suite.returncode}"
        reports.append({"client": folder.name, "version": "", "check": "all", "seconds": 0,
                        "error": error})
    return reports


def show(reports):
    """Prints what failed, a table and a count; whether all is well."""
    failed = [report for report in reports if report["error"]]
    for report in failed:
        print(f"--- {report['client']}.{report['check']}\n{report['error']}")
    rows = [(report["client"], report["version"], report["check"].replace("_", " "),
             "FAILED" if report["error"] else "ok", f"{report['seconds']:.2f} s")
            for report in reports]
    widths = [max(len(row[i]) for row in rows) for i in range(5)] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed")
    return bool(rows) and not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offshoot", default=ROOT / "target/release/offshoot", type=pathlib.Path)
    parser.add_argument("--folder", default=ROOT / "target/clients", type=pathlib.Path,
                        help="where the clients are installed")
    parser.add_argument("--without", action="append", choices=SUITES, default=[],
                        help="leave out the clients of this registry")
    parser.add_argument("checks", nargs="*", help="parts of names of checks (default: all)")
    arguments = parser.parse_args()
    if not arguments.offshoot.exists():
        sys.exit(f"{arguments.offshoot} is not there: cargo build --release -p cli -p runner")
    at = arguments.folder.resolve()
    suites = {at / name: prepare(at / name) for name, prepare in SUITES.items()
              if name not in arguments.without}
    with tempfile.TemporaryDirectory() as home:
        key, keys = "sk-" + secrets.token_hex(16), pathlib.Path(home) / "keys"
        keys.write_text(f"{key} name=clients admin\n")
        server, address = start(arguments.offshoot, keys, pathlib.Path(home) / "home")
        try:
            # The server's talk must not fill the pipe.
            talk = subprocess.Popen(["cat"], stdin=server.stderr, stdout=sys.stderr)
            environment = {**os.environ, "CLIENTS_ADDRESS": address, "CLIENTS_KEY": key}
            reports = [report for folder, command in suites.items()
                       for report in run([*command, *arguments.checks], folder, environment)]
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(END_S)
            talk.wait(END_S)
    passed = show(reports)
    if ended != 0:
        sys.exit(f"the server ended with {ended} after SIGTERM")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
