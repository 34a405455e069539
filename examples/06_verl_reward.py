"""The reward function of a verl run, with the model in DMOERM_MODEL:

    reward.custom_reward_function.path=examples/06_verl_reward.py reward.custom_reward_function.name=compute_score

(older versions of verl: custom_reward_function.path …). The data set must carry the prompt in `extra_info`. Run by itself it scores one
sample as verl would hand it over:

    DMOERM_MODEL=my-rm/model python examples/06_verl_reward.py
"""

from dmoerm.integrations.verl import compute_score

if __name__ == "__main__":
    extra_info = {"index": 0, "prompt": [{"role": "user", "content": "Why is the sky blue?"}]}
    answer = compute_score("my-data", "Air scatters blue light more than red.", None, extra_info)
    print(", ".join(f"{name} {value:.3f}" for name, value in answer.items()))
