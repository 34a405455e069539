"""Bulk scoring at size, killed in the middle: is any row lost or doubled, and does memory grow with the file.

    python benchmarks/bulk_scoring.py WORK [--rows 1000000] [--workers 2] [--engines local ray] [--json FILE] [--markdown FILE]

WORK is a folder for the model, the input and the outputs; what is there already is used again. The model has random weights: one layer,
16 wide, two experts, short rows, so that what is measured is everything around the model. For each engine: `dmoerm score` in a session of
its own; SIGKILL to the whole group when a share of the parts is there; `--resume` to the end. Then every line of the output must be the
one that the input has in that place, and the engines must agree as id -> reward. Memory is the resident size of the first process and of
the largest other process below it, each second.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from datetime import date
from itertools import zip_longest
from pathlib import Path

WORDS = "the a river rain bridge house night day poem answer true false good bad long short warm cold stone glass water bird tree".split()
KILL_AT = 0.4
"""Share of the parts."""
TOLERANCE = 1e-5


def tiny_model(folder):
    """A saved reward model with random weights; its backbone lies beside it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

    from dmoerm.data.rendering import Renderer
    from dmoerm.modeling.backbone import Backbone
    from dmoerm.modeling.inner import InnerModel
    from dmoerm.modeling.reward_model import RewardModel
    from dmoerm.modeling.router import Router
    from dmoerm.taxonomy import GENERAL, paper_taxonomy

    if (folder / "model").exists():
        return folder / "model"
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=64
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    AutoModel.from_config(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    backbone = Backbone.load(str(folder / "backbone"))
    inner = InnerModel(GENERAL, ("correctness", "logic"), backbone.hidden_size, units=4, copies=2)
    backbone.add_task_adapter(GENERAL, depth=1, rank=2, alpha=2.0, dropout=0.0)
    backbone.add_experts(GENERAL, len(inner.members), depth=1, rank=2, alpha=2.0, dropout=0.0)
    for module in (inner, *(low_rank for _, low_rank in backbone._low_ranks())):
        for parameter in module.parameters():
            parameter.data.copy_(torch.randn(parameter.shape) * 0.3)
    router = Router((), backbone.hidden_size, general_below=0.5)
    model = RewardModel(backbone, Renderer(tokenizer, 64), router, {GENERAL: inner}, taxonomy=paper_taxonomy())
    model.save_pretrained(folder / "model")
    return folder / "model"


def write_input(path, rows):
    """One short response a row, ids row-0, row-1, …"""
    if path.exists():
        return
    rng = random.Random(0)
    with path.with_suffix(".tmp").open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt, response = (" ".join(rng.choices(WORDS, k=rng.randrange(2, 6))) for _ in range(2))
            file.write(json.dumps({"id": f"row-{number}", "prompt": prompt, "response": response}) + "\n")
    path.with_suffix(".tmp").replace(path)


class Watched:
    """`dmoerm score` in a session of its own, with the memory of its processes."""

    def __init__(self, command, log):
        self.begin = time.monotonic()
        self.log = log.open("ab")
        self.process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=self.log)
        self.first, self.largest = [], []

    def look(self):
        """Note the memory; the process ids below the first one."""
        below = descendants(self.process.pid)
        sizes = [resident_mib(pid) for pid in below]
        self.first.append(resident_mib(self.process.pid))
        self.largest.append(max(sizes, default=0.0))
        return below

    def seconds(self):
        return time.monotonic() - self.begin


def descendants(root):
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    found, waiting = [], [root]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, of in parents.items() if of == parent]
        found += children
        waiting += children
    return found


def resident_mib(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # it has just ended
        return 0.0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parts_of(target):
    folder = target.with_name(f"{target.name}.parts")
    try:
        return sum(entry.name.startswith("part-") and not entry.name.endswith(".tmp") for entry in os.scandir(folder))
    except FileNotFoundError:
        return 0


def killed_and_resumed(engine, model, source, target, rows, workers):
    """One engine: killed at `KILL_AT`, resumed to the end; what was seen."""
    for old in (target, *target.with_name(f"{target.name}.parts").glob("*")):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dmoerm.cli.main", "score", model, source, target, "--device", "cpu", "--engine", engine]
    command = [*map(str, command), "--workers", str(workers)]
    log = target.with_suffix(".log")
    shards = -(-rows // 512)

    first = Watched(command, log)
    while parts_of(target) < KILL_AT * shards:
        if first.process.poll() is not None:
            raise SystemExit(f"ended before it was killed; see {log}")
        below = first.look()
        time.sleep(1)
    at_kill = first.seconds()
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    begin = time.monotonic()
    while any(map(alive, below)) and time.monotonic() - begin < 60:
        time.sleep(0.1)
    left = sum(map(alive, below))
    kept = parts_of(target)

    second = Watched([*command, "--resume"], log)
    while second.process.poll() is None:
        second.look()
        time.sleep(1)
    if second.process.returncode != 0:
        raise SystemExit(f"exit code {second.process.returncode}; see {log}")
    summary = json.loads(second.process.stdout.read())
    return {
        "engine": engine,
        "rows": summary["rows"],
        "parts_at_kill": kept,
        "seconds_to_kill": round(at_kill, 1),
        "processes_left_a_minute_after_the_kill": left,
        "resumed_rows": summary["resumed_rows"],
        "seconds_of_resume": round(second.seconds(), 1),
        "rows_a_second": round((rows - summary["resumed_rows"]) / second.seconds()),
        "failed": summary["failed"],
        "first_process_mib": quarters(second.first),
        "largest_worker_mib": quarters(second.largest),
        "largest_worker_mib_before_the_kill": quarters(first.largest),
    }


def quarters(values):
    """At a quarter, a half, three quarters and near the end of the time, the highest of the ten seconds around."""
    picked = []
    for share in (0.25, 0.5, 0.75, 0.97):
        middle = int(share * len(values))
        picked.append(round(max(values[max(0, middle - 5) : middle + 5], default=0.0)))
    return picked


def check(target, rows):
    """Lines that are not the row of their place: lost, doubled or out of order."""
    wrong = 0
    with target.open(encoding="utf-8") as file:
        for number, line in zip_longest(range(rows), file):
            row = json.loads(line) if line is not None else {}
            wrong += number is None or row.get("id") != f"row-{number}" or row.get("response_index") != 0 or "reward" not in row
    return wrong


def largest_difference(first, second):
    with first.open(encoding="utf-8") as one, second.open(encoding="utf-8") as other:
        return max(abs(json.loads(a)["reward"] - json.loads(b)["reward"]) for a, b in zip(one, other, strict=True))


def as_markdown(result):
    lines = [
        "# Bulk scoring, killed in the middle",
        "",
        f"`python benchmarks/bulk_scoring.py WORK --rows {result['rows']} --workers {result['workers']}`, {result['date']}, "
        f"{result['machine']}. n = {result['rows']:,} rows of one response; a model of one layer, 16 wide, two experts, random weights. "
        f"SIGKILL to the whole process group when {KILL_AT:.0%} of the parts were there, then `--resume`. {result['note']}",
        "",
        "| | " + " | ".join(run["engine"] for run in result["runs"]) + " |",
        "|---|" + "---|" * len(result["runs"]),
    ]
    for name in result["runs"][0]:
        if name != "engine":
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(str(run[name]) for run in result["runs"]) + " |")
    lines += ["", "Memory: resident MiB at 25, 50, 75 and 97 % of the time of the resumed run."]
    if "largest_difference" in result:
        lines += ["", f"Largest difference of a reward between the engines: {result['largest_difference']:.1e}."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else ran on the machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = tiny_model(args.work)
    source = args.work / f"in-{args.rows}.jsonl"
    write_input(source, args.rows)

    runs, targets = [], []
    for engine in args.engines:
        target = args.work / f"out-{engine}.jsonl"
        run = killed_and_resumed(engine, model, source, target, args.rows, args.workers)
        runs.append({**run, "rows_lost_doubled_or_out_of_order": check(target, args.rows)})
        targets.append(target)
        print(json.dumps(runs[-1]), flush=True)
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "rows": args.rows,
        "workers": args.workers,
        "note": args.note,
        "runs": runs,
    }
    if len(targets) == 2:
        result["largest_difference"] = largest_difference(*targets)
    print(as_markdown(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(as_markdown(result), encoding="utf-8")
    if any(run["rows_lost_doubled_or_out_of_order"] for run in runs) or result.get("largest_difference", 0.0) > TOLERANCE:
        raise SystemExit("rows are missing or doubled, or the engines differ")


if __name__ == "__main__":
    main()
