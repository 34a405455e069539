"""Ask a running server in every dialect it speaks, and check that all of them give the same reward for the same conversation.

    dmoerm serve my-rm/model
    python examples/07_every_dialect.py [http://127.0.0.1:8000]

One line a dialect; exit code 1 if one of them differs. An API key is taken from the environment variable DMOERM_API_KEY. Needs only Python.
"""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

PROMPT = "Why is the sky blue?"
RESPONSE, OTHER = "Air scatters blue light more than red.", "It is not."
CHAT = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{RESPONSE}<|im_end|>\n"
MESSAGES = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
TOLERANCE = 1e-3
"""Beside other texts in a batch a reward moves by rounding."""
TRIES = 5

# (dialect, route, body, where the reward of RESPONSE stands in the answer)
DIALECTS = [
    ("dmoerm", "/v1/reward", {"prompt": PROMPT, "responses": [RESPONSE, OTHER]}, lambda a: a["results"][0]["reward"]),
    ("dmoerm", "/v1/compare", {"prompt": PROMPT, "responses": [OTHER, RESPONSE]}, lambda a: a["results"][1]["reward"]),
    ("OpenRLHF", "/get_reward", {"query": [PROMPT + RESPONSE], "prompts": [PROMPT], "labels": [None]}, lambda a: a["rewards"][0]),
    ("OpenRLHF, templated", "/get_reward", {"query": [CHAT], "prompts": [CHAT.split(RESPONSE)[0]]}, lambda a: a["rewards"][0]),
    ("vLLM", "/classify", {"model": "rm", "input": CHAT, "use_activation": False}, lambda a: a["data"][-1]["probs"][-1]),
    ("vLLM, messages", "/classify", {"model": "rm", "messages": MESSAGES}, lambda a: a["data"][-1]["probs"][-1]),
    ("vLLM", "/pooling", {"model": "rm", "input": CHAT, "task": "classify"}, lambda a: a["data"][0]["data"][0]),
    ("vLLM", "/score", {"model": "rm", "queries": PROMPT, "documents": [RESPONSE, OTHER]}, lambda a: a["data"][0]["score"]),
    ("SGLang", "/classify", {"model": "rm", "text": [CHAT]}, lambda a: a[0]["embedding"][0]),
    ("SGLang", "/v1/embeddings", {"model": "rm", "input": CHAT}, lambda a: a["data"][-1]["embedding"][-1]),
    ("TEI", "/predict", {"inputs": [[PROMPT, RESPONSE]], "raw_scores": True}, lambda a: a[0][0]["score"]),
    ("LLaMA-Factory", "/v1/score/evaluation", {"model": "rm", "messages": [CHAT]}, lambda a: a["scores"][0]),
]


def ask(url: str, body: dict | None = None) -> str:
    """The answer to a GET, or to a POST where there is a body. A server that is full says when to come back."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("DMOERM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    for left in reversed(range(TRIES)):
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read().decode()
        except urllib.error.HTTPError as error:
            wait = error.headers.get("Retry-After")
            if wait is None or not left:
                raise SystemExit(f"{url}: {error.code} {error.read().decode()}") from error
            time.sleep(float(wait))
        except urllib.error.URLError as error:
            raise SystemExit(f"{url}: {error.reason}. Start one with `dmoerm serve MODEL`.") from error
    raise AssertionError


def counted(url: str) -> Counter:
    """Answers with status 200 by route, and texts that could not be split, as the server counts them."""
    metrics = ask(url + "/metrics")
    found = Counter(
        {route: int(n) for route, n in re.findall(r'^dmoerm_requests_total\{route="(.+?)",status="200"\} (\d+)', metrics, re.M)}
    )
    found["not split"] = sum(int(n) for n in re.findall(r"^dmoerm_unsplit_total\{.+\} (\d+)", metrics, re.M))
    return found


def line(dialect: str, route: str, found: str, good: bool) -> bool:
    print(f"{dialect:<20} {route:<22} {found:<28} {'ok' if good else 'DIFFERENT'}")
    return good


def main(url: str = "http://127.0.0.1:8000") -> int:
    url = url.rstrip("/")
    good = line("health", "/health/live", "live", json.loads(ask(url + "/health/live"))["live"])
    good &= line("health", "/health/ready", "ready", json.loads(ask(url + "/health/ready"))["ready"])
    before = counted(url)
    info = json.loads(ask(url + "/v1/info"))
    good &= line("dmoerm", "/v1/info", f"{info['model']}, {len(info['categories'])} categories", "general" in info["categories"])
    expected = None
    for dialect, route, body, reward_in in DIALECTS:
        reward = reward_in(json.loads(ask(url + route, body)))
        expected = reward if expected is None else expected
        good &= line(dialect, route, f"{reward:+.5f}", abs(reward - expected) <= TOLERANCE * max(1.0, abs(expected)))
    more = counted(url) - before
    asked = Counter(route for _, route, _, _ in DIALECTS)
    good &= line("metrics", "/metrics", f"{sum(asked.values())} answers counted", all(more[route] >= n for route, n in asked.items()))
    good &= line("metrics", "/metrics", f"{more['not split']} texts not split", more["not split"] == 0)
    print("all dialects agree" if good else "not all dialects agree")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
