#!/usr/bin/env bash
# Builds, tests and times fastgan on a machine with an NVIDIA GPU, within 10 minutes and without a network.
#
#     bench/gpu_check.sh [FOLDER]        results go into FOLDER, by default $OUT or bench/results
#
# PYTHON names the interpreter. docs/gpu.md describes phases, results and what the machine needs.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_phases.py" check "$@"
