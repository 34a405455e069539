"""All benchmarks by name. A new one is a file beside this one, a row here, a test and a line of docs/benchmarks.md."""

from dmoerm.evaluation.benchmarks.definition import Benchmark
from dmoerm.evaluation.benchmarks.judge_bench import JUDGE_BENCH, JUDGE_BENCH_CLAUDE
from dmoerm.evaluation.benchmarks.llm_bar import LLM_BAR
from dmoerm.evaluation.benchmarks.ppe import PPE_CORRECTNESS, PPE_HUMAN
from dmoerm.evaluation.benchmarks.reward_bench import REWARD_BENCH
from dmoerm.evaluation.benchmarks.reward_bench_2 import REWARD_BENCH_2
from dmoerm.evaluation.benchmarks.rm_bench import RM_BENCH

__all__ = ["BENCHMARKS"]

BENCHMARKS: dict[str, Benchmark] = {
    "rewardbench": REWARD_BENCH,
    "rewardbench2": REWARD_BENCH_2,
    "rm-bench": RM_BENCH,
    "judgebench": JUDGE_BENCH,
    "judgebench-claude": JUDGE_BENCH_CLAUDE,
    "llmbar": LLM_BAR,
    "ppe-human": PPE_HUMAN,
    "ppe-correctness": PPE_CORRECTNESS,
}
