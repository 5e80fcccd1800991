"""The edge: gRPC in, calls of the runtime out. Above it is `daemon`; below it everything else."""
