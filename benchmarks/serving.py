"""What serving costs beside scoring the same texts offline, and what overload does.

    python benchmarks/serving.py MODEL [--seconds 60] [--clients 64] [--json FILE]
    python benchmarks/serving.py MODEL --seconds 400        # is memory flat: minutes apart are compared

The texts are the bundled sample's prompts with their responses. Offline: `score_many` in this process, before and after the server
ran, the mean of both. Served: `dmoerm serve` in a process of its own, and that many clients on loopback that send one prompt with its
responses, wait for the answer and send the next; the first tenth of the time is not counted. Overload: a second server whose line is
short, and four times the clients; then single requests until one is answered.
Memory: resident size of the serving process, each second; its peak in the first tenth of the time, then the mean of the first minute, of
the last one, and how much larger the last is. With less than two minutes to count, halves of what there is stand for the minutes.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from importlib.resources import files
from itertools import count, cycle
from pathlib import Path
from statistics import fmean

MEMORY_SECONDS = 1.0
MINUTE = 60.0
OFFLINE_REQUESTS = 128
"""In one call of `score_many`, so that batches are as full as bulk scoring makes them."""


def sample():
    """(prompt, responses) of the bundled sample."""
    text = files("dmoerm.data").joinpath("sample", "sample.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [(row["prompt"], [one if isinstance(one, str) else one["text"] for one in row["responses"]]) for row in rows]


def offline(model_name, rows, seconds):
    """Responses a second of `score_many`."""
    from dmoerm.modeling.reward_model import RewardModel, ScoreRequest, as_messages

    model = RewardModel.from_pretrained(model_name)
    requests = [ScoreRequest(as_messages(prompt), tuple(responses)) for prompt, responses in rows]
    chunks = [requests[start : start + OFFLINE_REQUESTS] for start in range(0, len(requests), OFFLINE_REQUESTS)]
    model.score_many(requests[:16])
    done, begin = 0, time.monotonic()
    for chunk in cycle(chunks):
        model.score_many(chunk)
        done += sum(len(request.responses) for request in chunk)
        if time.monotonic() - begin > seconds:
            break
    return done / (time.monotonic() - begin)


class Served:
    """`dmoerm serve` on a free port."""

    def __init__(self, model_name, *flags):
        command = [sys.executable, "-m", "dmoerm.cli.main", "serve", model_name, "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=90)
        return self.process.returncode

    def resident_mib(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def ask(connection, port, body, method="POST", path="/v1/reward"):
    """One request on a kept connection: (status, headers, connection)."""
    reader, writer = connection or await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), headers, (reader, writer)


async def ready(port):
    connection = None
    while True:
        status, _, connection = await ask(connection, port, b"", "GET", "/health/ready")
        if status == 200:
            connection[1].close()
            return
        await asyncio.sleep(0.2)


async def load(served, bodies, clients, seconds):
    """Statuses, waits of accepted requests and responses scored, all after the first tenth of the time; memory as (second, MiB)."""
    statuses, waits, memory, scored = Counter(), [], [], 0
    without_retry = 0
    begin = time.monotonic()
    numbers = count()

    async def client():
        nonlocal scored, without_retry
        connection = None
        while (now := time.monotonic()) - begin < seconds:
            body, responses = bodies[next(numbers) % len(bodies)]
            status, headers, connection = await ask(connection, served.port, body)
            end = time.monotonic()
            if not seconds / 10 <= end - begin <= seconds:
                continue
            statuses[status] += 1
            without_retry += status == 429 and "retry-after" not in headers
            if status == 200:
                waits.append(end - now)
                scored += responses
            elif status == 429:
                await asyncio.sleep(0.5)  # sooner than Retry-After asks for
        if connection is not None:
            connection[1].close()

    async def watch():
        while True:
            memory.append((time.monotonic() - begin, served.resident_mib()))
            await asyncio.sleep(MEMORY_SECONDS)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(client() for _ in range(clients)))
    watching.cancel()
    return statuses, sorted(waits), scored / (0.9 * seconds), memory, without_retry


async def recovery(port, body):
    """Seconds until a single request is answered with 200."""
    begin, connection = time.monotonic(), None
    while True:
        status, _, connection = await ask(connection, port, body)
        if status == 200:
            connection[1].close()
            return time.monotonic() - begin
        await asyncio.sleep(0.05)


def memory_found(memory, seconds):
    """Means of the first and the last minute after the warm-up, which is the first tenth of the time; the peaks of both parts."""
    warm = seconds / 10
    span = min(MINUTE, (seconds - warm) / 2)
    peak = max(mib for second, mib in memory if second < warm)
    counted = [(second, mib) for second, mib in memory if warm <= second <= seconds]
    first = fmean(mib for second, mib in counted if second < warm + span)
    last = fmean(mib for second, mib in counted if second >= seconds - span)
    return {
        "memory_mib_warm_up_peak": round(peak, 1),
        "memory_mib_peak_after_it": round(max(mib for _, mib in counted), 1),
        "memory_mib_first_minute": round(first, 1),
        "memory_mib_last_minute": round(last, 1),
        "memory_growth": round(last / first - 1, 4),
        "memory_minute_s": round(span, 1),
    }


def quantile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = sample()
    bodies = [(json.dumps({"prompt": prompt, "responses": responses}).encode(), len(responses)) for prompt, responses in rows]

    aside = min(args.seconds, MINUTE)  # a longer run is longer for the served part alone
    before = offline(args.model, rows, aside / 4)
    served = Served(args.model)
    asyncio.run(ready(served.port))
    statuses, waits, rate, memory, _ = asyncio.run(load(served, bodies, args.clients, args.seconds))
    code = served.end()
    after = offline(args.model, rows, aside / 4)

    short = Served(args.model, "--limit", "queue_tokens=8192")
    asyncio.run(ready(short.port))
    flooded, accepted, _, _, without_retry = asyncio.run(load(short, bodies, 4 * args.clients, aside / 3))
    recovered = asyncio.run(recovery(short.port, bodies[0][0]))
    short.end()

    peer = (before + after) / 2
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "clients": args.clients,
        "seconds": args.seconds,
        "offline_responses_a_second": [round(before, 1), round(after, 1)],
        "served_responses_a_second": round(rate, 1),
        "served_share_of_offline": round(rate / peer, 3),
        "statuses": dict(statuses),
        "p50_s": round(quantile(waits, 0.5), 3),
        "p99_s": round(quantile(waits, 0.99), 3),
        **memory_found(memory, args.seconds),
        "exit_code_after_sigterm": code,
        "overload_statuses": dict(flooded),
        "overload_429_without_retry_after": without_retry,
        "overload_p99_of_accepted_s": round(quantile(accepted, 0.99), 3),
        "seconds_to_200_after_overload": round(recovered, 3),
    }
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
