#!/usr/bin/env bash
# Over-optimisation by real RL on one GPU: one GRPO run for each reward, same policy, prompts and seed; a gold reward watches.
#
# NOT YET RUN ON A GPU. A test checks the flags, and tiny models run the code path on the CPU; batch size, learning rate and number of steps
# are starting points, not measurements. Expect to change them, and please report what you find.
#
#   GOLD=a-stronger-reward-model PROMPTS=prompts.jsonl recipes/overoptimize_one_gpu.sh my-rm/model single-rm/model
#
# GOLD should be stronger than the rewards and trained on other data, or it shares their faults. The policy, the reward and gold are in
# memory together. Interrupted: run it again with RESUME=--resume.
set -euo pipefail

dmoerm overoptimize "$@" \
    --policy "${POLICY:-Qwen/Qwen3-0.6B}" \
    --gold "${GOLD:?name a gold reward model}" \
    --prompts "${PROMPTS:?name a file of prompts}" \
    --output "${OUTPUT:-overoptimize}" \
    --steps 500 --generations 8 --prompts-per-step 8 --batch 8 --max-completion-tokens 256 \
    --lora 32 --learning-rate 2e-5 --beta 0 \
    --measure-prompts 64 --measure-samples 2 --measure-every 25 --save-every 50 \
    ${RESUME:-}
