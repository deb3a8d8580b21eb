"""`school serve`: 64 clients that stream answers at once, in another process, each asking anew when it is done.

Every request has a seed, so that what is said is what `server_sampler.py` says.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from turns import read_work, take_turns

CLIENTS = 64
folder, work = read_work()


def start() -> tuple[int, subprocess.Popen[bytes]]:
    """The server's port, and its process, which ends with this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder / "model"), "--port", str(port), "--max_num_seqs", str(CLIENTS), "--served_model_name", "m"]
    process = subprocess.Popen([sys.executable, "-m", "schoolhouse", *words], stdout=subprocess.DEVNULL)

    def end(*_: object) -> None:
        process.kill()
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    return port, process


def peak(process: subprocess.Popen[bytes]) -> int:
    """The most memory that the server has had, in bytes; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


async def ask(port: int, body: dict) -> int:
    """Stream one answer; gives its tokens. A stream that ends without its last event is an error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    sent = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    tokens = -1
    while line := await reader.readline():
        if line.startswith(b"data: {") and b'"usage":' in line:
            tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        if line.startswith(b"data: [DONE]"):
            writer.close()
            return tokens
    raise RuntimeError("a stream was dropped")


async def everybody(port: int) -> int:
    lengths = [length for wanted in work["lengths"] for length in wanted]
    prompts = [prompt for prompt in work["prompts"] for _ in range(work["samples"])]
    waiting = list(enumerate(zip(prompts, lengths, strict=True)))[::-1]
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        while waiting:
            seed, (prompt, length) = waiting.pop()
            asked = {"model": "m", "prompt": prompt, "max_tokens": length, "seed": seed, "stream": True}
            said = await ask(port, {**asked, "stream_options": {"include_usage": True}})
            tokens += said

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return tokens


async def until_there(port: int) -> None:
    for _ in range(300):
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        except OSError:
            await asyncio.sleep(0.2)
    raise RuntimeError("the server does not answer")


port, server = start()
asyncio.run(until_there(port))
take_turns(lambda: {"tokens": asyncio.run(everybody(port)), "peak": peak(server)})
server.kill()
