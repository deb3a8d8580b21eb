"""Start `school serve` in a separate process, and send requests from 64 parallel clients.

Each client streams one completion after another.

Every request has a seed, so that the completions are the same as in `server_sampler.py`.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from protocol import read_workload, serve_repeats

CLIENTS = 64
folder, work = read_workload()


def start() -> tuple[int, subprocess.Popen[bytes]]:
    """Start the server and return the server's port and process. The server ends when the present process ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = ["serve", str(folder / "model"), "--port", str(port), "--max_num_seqs", str(CLIENTS)]
    command = [sys.executable, "-m", "schoolhouse", *args, "--served_model_name", "m"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def end(*_: object) -> None:
        process.kill()
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    return port, process


def peak(process: subprocess.Popen[bytes]) -> int:
    """The peak memory of the server in bytes; 0 if the system does not report the peak memory."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


async def stream_completion(port: int, body: dict) -> int:
    """Stream one completion and return its number of tokens. Raises RuntimeError if the last event is missing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    tokens = -1
    while line := await reader.readline():
        if line.startswith(b"data: {") and b'"usage":' in line:
            tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        if line.startswith(b"data: [DONE]"):
            writer.close()
            return tokens
    raise RuntimeError("the stream of a completion ended without its last event")


async def run_clients(port: int) -> int:
    """Stream all completions of the workload and return the number of their tokens."""
    lengths = [length for group in work["lengths"] for length in group]
    prompts = [prompt for prompt in work["prompts"] for _ in range(work["samples"])]
    waiting = list(enumerate(zip(prompts, lengths, strict=True)))[::-1]
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        while waiting:
            seed, (prompt, length) = waiting.pop()
            body = {"model": "m", "prompt": prompt, "max_tokens": length, "seed": seed, "stream": True}
            more = await stream_completion(port, {**body, "stream_options": {"include_usage": True}})
            tokens += more

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return tokens


async def wait_until_listening(port: int) -> None:
    for _ in range(300):
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        except OSError:
            await asyncio.sleep(0.2)
    raise RuntimeError("the server does not answer")


port, server = start()
asyncio.run(wait_until_listening(port))
serve_repeats(lambda: {"tokens": asyncio.run(run_clients(port)), "peak": peak(server)})
server.kill()
