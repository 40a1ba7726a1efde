"""Starts `offshoot serve` with the bundled model on a free port and lets the clients that most
programs use ask it: see README.md. Needs python3 with pip, and Offshoot built."""

import argparse
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Between two lines of the server, loading included.
START_S = 120
END_S = 60


def python_of(folder):
    """The interpreter of a virtual environment, which is made if need be."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--requirement", HERE / "requirements.txt"]
    subprocess.run(pip, check=True)
    return python


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offshoot", default=ROOT / "target/release/offshoot", type=pathlib.Path)
    parser.add_argument("--venv", default=ROOT / "target/clients", type=pathlib.Path)
    parser.add_argument("checks", nargs="*", help="parts of names of checks (default: all)")
    arguments = parser.parse_args()
    if not arguments.offshoot.exists():
        sys.exit(f"{arguments.offshoot} is not there: cargo build --release -p cli -p runner")
    python = python_of(arguments.venv)
    with tempfile.TemporaryDirectory() as folder:
        key = "sk-" + secrets.token_hex(16)
        keys = pathlib.Path(folder) / "keys"
        keys.write_text(f"{key} name=clients admin\n")
        server, address = start(arguments.offshoot, keys, pathlib.Path(folder) / "home")
        try:
            # The server's talk must not fill the pipe.
            talk = subprocess.Popen(["cat"], stdin=server.stderr, stdout=sys.stderr)
            environment = {**os.environ, "CLIENTS_ADDRESS": address, "CLIENTS_KEY": key}
            command = [python, HERE / "checks.py", *arguments.checks]
            status = subprocess.run(command, env=environment).returncode
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(END_S)
            talk.wait(END_S)
    if ended != 0:
        sys.exit(f"the server ended with {ended} after SIGTERM")
    sys.exit(status)


if __name__ == "__main__":
    main()
