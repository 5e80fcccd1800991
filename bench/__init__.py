"""Benchmarks: ratios in one run, a bare grpc.aio stream beside the daemon. Run with `make bench`."""
