"""Benchmarks that compare the speed of this package and another library on the same workload.

See workload.py and benchmark.py.
"""
