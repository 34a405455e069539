"""The reward function of an OpenRLHF run: name this file as --reward.remote_url (older: --remote_rm_url), and the model in DMOERM_MODEL.

Run by itself it scores one sample as OpenRLHF would hand it over:

    DMOERM_MODEL=my-rm/model python examples/05_openrlhf_reward.py
"""

from dmoerm.integrations.openrlhf import reward_func

PROMPT = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"  # as --apply_chat_template leaves it

if __name__ == "__main__":
    answer = reward_func([f"{PROMPT}Air scatters blue light more than red.<|im_end|>"], [PROMPT], [None])
    print(f"rewards {answer['rewards'].tolist()}, scores {answer['scores'].tolist()}")
    for name, values in answer["extra_logs"].items():
        print(f"{name} {values.tolist()}")
