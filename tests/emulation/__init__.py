"""Executes CUDA kernels on the CPU: build.py builds, scheduler.cpp executes, seeded_bugs.cu proves the checks."""
