"""Train a policy with TRL's GRPO against a reward model: one reward, or capabilities with weights of their own.

    python examples/04_trl_grpo.py my-rm/model POLICY [CAPABILITY=WEIGHT …]

POLICY is a causal language model. Needs dmoerm[rl]. A few steps on two prompts: enough to see that it runs, and no more.
"""

import sys
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from dmoerm.integrations.trl import capability_functions, reward_function

PROMPTS = ["Why is the sky blue?", "My train is late and I will miss the wedding. What can I do?"]


def main(model_path: str, policy: str, *weighted: str) -> None:
    weights = {name: float(weight) for name, _, weight in (item.partition("=") for item in weighted)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=capability_functions(model_path, list(weights)) if weights else [reward_function(model_path)],
            args=GRPOConfig(
                output_dir=folder,
                reward_weights=list(weights.values()) or None,
                max_steps=2,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=16,
                learning_rate=1e-5,
                bf16=False,  # on a GPU leave it to TRL
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]),
        )
        trainer.train()
    for row in trainer.state.log_history[:-1]:
        shown = {name: value for name, value in row.items() if name.startswith(("rewards/", "dmoerm/")) and not name.endswith("/std")}
        print(f"step {row['step']}: " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None))


if __name__ == "__main__":
    main(*sys.argv[1:])
