"""Send responses to a running server as OpenRLHF's remote reward model client does: several threads, small batches, tries again when full.

    dmoerm serve my-rm/model
    python examples/08_openrlhf_remote.py http://127.0.0.1:8000/get_reward [POLICY]

POLICY is a causal language model that writes two responses to each prompt; without one, texts that stand here are sent. The bodies are
those of OpenRLHF (openrlhf/utils/agent.py): `query` (prompt and response, control tokens kept), `prompts`, `labels`; of the answer it reads
`rewards`, `scores` and `extra_logs`. OpenRLHF sends one sample a request and waits a second between five tries; here a batch is sent, and
a server that says when to come back (429 or 503 with Retry-After) is heeded.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

PROMPTS = ["Why is the sky blue?", "My train is late and I will miss the wedding. What can I do?", "Write a line about the sea."]
RESPONSES = ["Air scatters blue light more than red.", "I am sorry to hear that. Call them now.", "The sea was calm.", "No."]
SAMPLES = 2  # responses of the policy to each prompt
TIMEOUT_S, TRIES, SLEEP_S = 180, 5, 1.0  # OpenRLHF's
FULL = (429, 503)


def post(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The answer, and how often the server said that it was full."""
    refused = 0
    while True:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                return json.load(reply), refused
        except urllib.error.HTTPError as error:
            refused += 1
            if error.code not in FULL or refused == TRIES:
                hint = "; the address ends in /get_reward" if error.code in (404, 405) else ""
                raise SystemExit(f"{url}: {error.code} {error.read().decode()}{hint}") from error
            time.sleep(float(error.headers.get("Retry-After") or SLEEP_S))


def remote_rewards(
    url: str, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], *, batch: int = 2, threads: int = 4
) -> tuple[list[float], dict[str, list[float]], int]:
    """Rewards in the order of the queries, the extra logs likewise, and how often the server was full."""
    pieces = [slice(start, start + batch) for start in range(0, len(queries), batch)]
    bodies = [{"query": list(queries[p]), "prompts": list(prompts[p]), "labels": list(labels[p])} for p in pieces]
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda body: post(url, body), bodies))
    rewards = [reward for answer, _ in answers for reward in answer["rewards"]]
    names = answers[0][0]["extra_logs"] if answers else {}
    logs = {name: [value for answer, _ in answers for value in answer["extra_logs"][name]] for name in names}
    return rewards, logs, sum(refused for _, refused in answers)


def written() -> tuple[list[str], list[str]]:
    """(queries, prompts) of the texts above, as --apply_chat_template leaves them with a ChatML policy."""
    templated = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in PROMPTS]
    pairs = [(prompt + response + "<|im_end|>", prompt) for prompt in templated for response in RESPONSES]
    return [query for query, _ in pairs], [prompt for _, prompt in pairs]


def sampled(policy: str) -> tuple[list[str], list[str]]:
    """(queries, prompts): what a policy answers, decoded with its control tokens as OpenRLHF does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    torch.manual_seed(0)
    queries, prompts = [], []
    for text in PROMPTS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        ids.pop("token_type_ids", None)
        made = model.generate(
            **ids, do_sample=True, min_new_tokens=4, max_new_tokens=24, num_return_sequences=SAMPLES, pad_token_id=tokenizer.pad_token_id
        )
        start = ids["input_ids"].shape[1]
        queries += [prompt + tokenizer.decode(row[start:], skip_special_tokens=False) for row in made]
        prompts += [prompt] * SAMPLES
    return queries, prompts


def main(url: str, policy: str | None = None) -> None:
    queries, prompts = sampled(policy) if policy else written()
    rewards, logs, refused = remote_rewards(url, queries, prompts, [None] * len(queries))
    for query, prompt, reward in zip(queries, prompts, rewards, strict=True):
        print(f"{reward:+.4f}  {query.removeprefix(prompt)[:80]!r}")
    means = ", ".join(f"{name} {fmean(values):.3f}" for name, values in logs.items())
    print(f"{len(rewards)} rewards, mean {fmean(rewards):+.4f}; {means}; {refused} times full")


if __name__ == "__main__":
    main(*sys.argv[1:])
