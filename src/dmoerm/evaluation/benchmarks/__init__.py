"""Public benchmarks of reward models, scored by the rules of their authors."""

from dmoerm.evaluation.benchmarks.report import BenchmarkReport
from dmoerm.evaluation.benchmarks.run import run_benchmark
from dmoerm.evaluation.benchmarks.table import BENCHMARKS

__all__ = ["BENCHMARKS", "BenchmarkReport", "run_benchmark"]
