#!/usr/bin/env bash
# Measures fastgan's step and kernels on a machine with an NVIDIA GPU, within 10 minutes: the call after gpu_check.sh.
#
#     bench/gpu_measure.sh [FOLDER]      results go into FOLDER, by default $OUT or bench/results
#
# FASTGAN_WHEEL names the wheel that gpu_check.sh has kept, FASTGAN_OFFICIAL a folder with the official code.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_phases.py" measure "$@"
