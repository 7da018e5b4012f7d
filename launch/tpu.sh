#!/usr/bin/env bash
# Train on all hosts of a TPU slice, with babyjax installed and a file system mounted at /shared on each:
#
#     bash launch/tpu.sh my-tpu us-central2-b model=gpt2 run_dir=/shared/runs/gpt2 train.mesh=fsdp
set -euo pipefail
gcloud compute tpus tpu-vm ssh "$1" --zone="$2" --worker=all --command="babyjax train distributed=auto ${*:3}"
