"""Real servers on this machine, without containers: Ray, a Prefect server and an MLflow server.

    python infra/local_stack.py --home ~/flowmapsr-stack

Prints the addresses to export, runs until Ctrl-C and listens on the loopback interface only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
START_SECONDS = 180.0


def commands(home: Path, *, prefect: int, mlflow: int, ray: int) -> dict[str, list[str]]:
    """The command line of each server."""
    store = f"sqlite:///{home / 'mlflow.db'}"
    artifacts = str(home / "artifacts")
    return {
        "prefect": [
            str(BIN / "prefect"),
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            str(prefect),
        ],
        "mlflow": [
            *(str(BIN / "mlflow"), "server", "--host", HOST, "--port", str(mlflow)),
            *("--backend-store-uri", store, "--artifacts-destination", artifacts),
        ],
        "ray": [
            *(str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", HOST),
            *("--port", str(ray), "--include-dashboard=false", "--disable-usage-stats"),
        ],
    }


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once `url` answers; RuntimeError when its server ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server behind {url} ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer within {START_SECONDS:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path.home() / ".flowmapsr-stack")
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--ray-port", type=int, default=6379)
    arguments = parser.parse_args()
    home: Path = arguments.home.expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    prefect, mlflow = arguments.prefect_port, arguments.mlflow_port
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home / "prefect"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    servers = {}
    for name, command in commands(
        home, prefect=prefect, mlflow=mlflow, ray=arguments.ray_port
    ).items():
        log = (home / f"{name}.log").open("ab")
        servers[name] = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wait_until_up(f"http://{HOST}:{prefect}/api/health", servers["prefect"])
        wait_until_up(f"http://{HOST}:{mlflow}/health", servers["mlflow"])
        print(f"export PREFECT_API_URL=http://{HOST}:{prefect}/api")
        print(f"export MLFLOW_TRACKING_URI=http://{HOST}:{mlflow}")
        print(f"export RAY_ADDRESS={HOST}:{arguments.ray_port}", flush=True)
        print(f"Logs are in {home}; Ctrl-C stops all three.", file=sys.stderr)
        while all(server.poll() is None for server in servers.values()):
            time.sleep(1)
        ended = [name for name, server in servers.items() if server.poll() is not None]
        print(f"ended: {', '.join(ended)}; see its log in {home}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"{error}; see the logs in {home}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers.values():
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in servers.values():
            server.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
