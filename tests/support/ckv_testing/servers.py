"""Servers of the tests' own: started on a free port, ended with the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
TRITON_VARIABLE = "CKV_TRITON_VENV"
TRITON_VENV = Path(__file__).resolve().parents[3] / ".triton"


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


class RedisServer:
    """A Redis that keeps every acknowledged write; skips the test where there is none.

    `options`: further ones of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        pytest.importorskip("redis", reason="the package redis is not installed")
        self.binary = shutil.which("redis-server")
        if self.binary is None:
            pytest.skip("redis-server is not installed (apt-get install redis-server)")
        self.folder, self.port, self.options = folder, free_port(), options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        import redis

        command = [str(self.binary), "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "always", *self.options]
        log = (self.folder / "redis.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                if self.client().ping():
                    return
            except redis.RedisError:
                time.sleep(0.02)
        raise AssertionError((self.folder / "redis.log").read_text())

    def hang(self) -> None:
        """Let it take connections and answer nothing until `go_on`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def triton_venv() -> Path:
    """Where the packages of Triton's tests are: CKV_TRITON_VENV, or .triton in the clone."""
    return Path(os.environ.get(TRITON_VARIABLE, TRITON_VENV))


def triton_python() -> Path:
    """Its Python with an ONNX Runtime of its own; skips the test where there is none."""
    venv = triton_venv()
    if not any(venv.glob("lib/python3.*/site-packages/onnxruntime")):
        pytest.skip(f"no ONNX Runtime in {venv}: install onnxruntime==1.23.2 there")
    return venv / "bin" / "python"


class TritonServer:
    """A real Triton on the CPU, with its Python backend; skips the test where there is none.

    It comes from a virtual environment with the packages nvidia-pytriton, onnxruntime and redis:
    the one that CKV_TRITON_VENV names, or .triton in the clone.
    """

    def __init__(self, repositories: Sequence[Path], folder: Path, store: str = "") -> None:
        self.venv = triton_venv()
        packages = sorted(self.venv.glob("lib/python3.*/site-packages"))
        if not packages or not (packages[0] / "pytriton" / "tritonserver").is_dir():
            pytest.skip(
                f"no Triton server in {self.venv}: install nvidia-pytriton==0.7.0, onnxruntime and "
                f"redis into a virtual environment there, or set {TRITON_VARIABLE}"
            )
        self.packages = packages[0]
        self.repositories, self.folder, self.store = repositories, folder, store
        self.http, self.grpc, self.metrics_port = free_ports(3)
        self.log = folder / "triton.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._backend()

    def _backend(self) -> None:
        """A folder of backends with the stub of this Python, which must find its libpython."""
        home = self.packages / "pytriton" / "tritonserver"
        version = self.packages.parent.name.removeprefix("python")
        stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
        found = subprocess.run(
            ["ldd", str(stub)], capture_output=True, text=True, check=False, env=self.environment()
        )
        if found.returncode or "not found" in found.stdout:
            pytest.skip(f"Triton's Python backend can't start here: {found.stdout}{found.stderr}")
        backend = self.folder / "backends" / "python"
        backend.mkdir(parents=True, exist_ok=True)
        for file in [*(p for p in (home / "backends" / "python").iterdir() if p.is_file()), stub]:
            (backend / file.name).unlink(missing_ok=True)
            (backend / file.name).symlink_to(file)

    def environment(self) -> dict[str, str]:
        """Nothing of the tests' own Python."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
        path = f"{self.venv / 'bin'}:{kept.get('PATH', '')}"
        libraries = str(self.packages / "nvidia_pytriton.libs")
        extra = {"CKV_STORE_URL": self.store} if self.store else {}
        return kept | {"PATH": path, "LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"} | extra

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            # Its Python models are processes of their own, and would outlive it.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def start(self) -> None:
        """Start it and wait until every model is ready."""
        binary = self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        repositories = [f"--model-repository={repository}" for repository in self.repositories]
        self._start([str(binary), *repositories], self.environment())

    @contextmanager
    def launched_by(self, script: Path) -> Iterator[None]:
        """The server as a repository's own script starts it."""
        home = self.packages / "pytriton" / "tritonserver" / "bin"
        environment = self.environment()
        environment["PATH"] = f"{home}:{environment['PATH']}"
        self._start([str(script)], environment)
        try:
            yield
        finally:
            self.__exit__()

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        command += [f"--backend-directory={self.folder / 'backends'}"]
        command += [f"--http-port={self.http}", f"--grpc-port={self.grpc}"]
        command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
        command += [f"--metrics-port={self.metrics_port}", "--disable-auto-complete-config"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        until = time.monotonic() + SECONDS
        while not self._ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            address = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with urllib.request.urlopen(address, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> str:
        """What it tells Prometheus."""
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=5) as answer:
            return str(answer.read().decode())

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(SECONDS)
        self.process = None
        return code
