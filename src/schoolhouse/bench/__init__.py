"""Speed as a ratio: this package and another library run one workload in turn. See workload.py and benchmark.py."""
