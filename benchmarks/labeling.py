"""How close labelling comes to what the endpoint allows, and what its queue costs in memory.

    python benchmarks/labeling.py [--calls 2000] [--latency-s 0.5] [--in-flight 100] [--queued 1000 20000]

The endpoint is the fake one of tests/, in a process of its own on the same machine. Ideal wall time: calls / in flight, rounded up, times
the latency. The peer of the same run is the bare `openai` client with a semaphore, which stores and reads nothing: what the client
library itself costs here. Memory: peak resident size of the labelling process with a short and with a long queue.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

CALLS_A_PAIR = 12  # six capabilities of objective_qa, each in both orders


def recipe(folder: Path, base_url: str, pairs: int, in_flight: int) -> Path:
    """A recipe over `pairs` pairs of about 130 words a response."""
    words = "the river runs past an old stone bridge where people meet to trade bread and news of the valley".split()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(pairs):
            texts = [" ".join(words * 7) + f" {number} [quality {quality}]" for quality in (0.8, 0.3)]
            row = {
                "prompt": f"Question {number}: what is known about it?",
                "chosen": texts[0],
                "rejected": texts[1],
                "category": "objective_qa",
            }
            file.write(json.dumps(row) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(
        "data: {comparisons: [pairs.jsonl], test_fraction: 0.0}\n"
        f"labeling: {{base_url: '{base_url}', model: fake, api_key_env: null, overall: false, canaries: false, "
        f"max_in_flight: {in_flight}}}\n",
        encoding="utf-8",
    )
    return path


def resident_mib() -> float:
    """Now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def label_child(path: Path, calls: int) -> None:
    """In a process of its own: label, and print what it took."""
    from dmoerm.data.sources import load_run_data
    from dmoerm.labeling.plan import plan_labels
    from dmoerm.labeling.run import Limits, label
    from dmoerm.labeling.store import Store
    from dmoerm.recipe import load_recipe

    loaded = load_recipe(path)
    plan = plan_labels(loaded, load_run_data(loaded))
    before = resident_mib()
    with Store(loaded.labeling.store, write=True) as store:
        result = asyncio.run(label(plan, store, "none", Limits(max_requests=calls)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "seconds": result.seconds,
                "sent": result.progress.sent,
                "answered": result.progress.done,
                "planned": result.progress.total,
                "before_mib": before,
                "peak_mib": peak,
                "cpu_s": time.process_time(),
            }
        )
    )


def bare_child(base_url: str, calls: int, in_flight: int) -> None:
    """The peer: the same number of requests of the same size, nothing kept."""
    from openai import AsyncOpenAI

    text = "the river runs past an old stone bridge where people meet to trade bread and news of the valley " * 16

    async def run() -> float:
        room = asyncio.Semaphore(in_flight)
        async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

            async def ask(number: int) -> None:
                async with room:
                    message = {"role": "user", "content": f"{text}\n- logic: {number}"}
                    await client.chat.completions.create(model="fake", messages=[message])

            begin = time.monotonic()
            await asyncio.gather(*(ask(number) for number in range(calls)))
            return time.monotonic() - begin

    print(json.dumps({"seconds": asyncio.run(run()), "cpu_s": time.process_time()}))


def child(*arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--latency-s", type=float, default=0.5)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--queued", type=int, nargs=2, default=[1000, 20000], help="lengths of the queue whose memory is compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        if kind == "label":
            label_child(Path(rest[0]), int(rest[1]))
        else:
            bare_child(rest[0], int(rest[1]), int(rest[2]))
        return
    from fake_openai import fake_openai_process

    ideal = math.ceil(args.calls / args.in_flight) * args.latency_s
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = ("--latency-s", str(args.latency_s), "--max-in-flight", str(args.in_flight))
        for number in range(args.rounds):
            place = folder / str(number)
            place.mkdir()
            with fake_openai_process(place / "requests.jsonl", *limits) as server:
                bare.append(child("--child", "bare", server.base_url, args.calls, args.in_flight))
            with fake_openai_process(place / "requests.jsonl", *limits) as server:
                path = recipe(place, server.base_url, math.ceil(args.calls / CALLS_A_PAIR), args.in_flight)
                ours.append(child("--child", "label", path, args.calls))
                ours[-1]["refused"] = sum(row.get("given") == "busy" for row in server.requests)
        memory = {}
        for queued in args.queued:
            place = folder / f"queue{queued}"
            place.mkdir()
            with fake_openai_process(place / "requests.jsonl", "--latency-s", "0.05") as server:
                path = recipe(place, server.base_url, math.ceil(queued / CALLS_A_PAIR), 32)
                memory[queued] = child("--child", "label", path, queued)

    def seconds(runs: list[dict[str, float]]) -> str:
        values = sorted(run["seconds"] for run in runs)
        return f"{values[len(values) // 2]:.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    lines = [
        f"Date {date.today()}, {platform.machine()}, {os.cpu_count()} cores for client and endpoint, Python {platform.python_version()}.",
        "",
        f"{args.calls:,} calls at {args.latency_s:g} s latency, at most {args.in_flight} in flight; ideal {ideal:.2f} s. "
        f"Median (least to most) of {args.rounds} rounds.",
        "",
        "| client | wall time, s | of the ideal | CPU, s |",
        "|---|---|---|---|",
    ]
    for title, runs in (("bare openai client, nothing kept", bare), ("dmoerm label, every reply on disk before it is read", ours)):
        median = sorted(run["seconds"] for run in runs)[len(runs) // 2]
        cpu_s = sum(run["cpu_s"] for run in runs) / len(runs)
        lines.append(f"| {title} | {seconds(runs)} | {median / ideal:.3f} | {cpu_s:.1f} |")
    lines += ["", "| calls in the queue | answered | before, MiB | peak, MiB |", "|---|---|---|---|"]
    for run in memory.values():
        lines.append(f"| {int(run['planned']):,} | {int(run['answered']):,} | {run['before_mib']:.0f} | {run['peak_mib']:.0f} |")
    page = "# Labelling\n\n" + "\n".join(lines) + "\n"
    print(page)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "labeling.md").write_text(page, encoding="utf-8")
    (args.output / "labeling.json").write_text(json.dumps({"ideal": ideal, "ours": ours, "bare": bare, "memory": memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
