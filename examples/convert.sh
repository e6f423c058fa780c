#!/bin/sh
# The cookbook's lines for optimum-cli, as lines for aipc.
#   sh examples/convert.sh [MODEL] [FOLDER]
set -eu
model=${1:-microsoft/Phi-3-mini-4k-instruct}
folder=${2:-./openvinomodel/phi3}

aipc convert --model "$model" --task text-generation-with-past --weight-format int4 --group-size 128 --ratio 0.6 --sym --trust-remote-code "$folder/int4"

aipc convert --model "$model" --task text-generation-with-past --weight-format fp16 --trust-remote-code "$folder/fp16"
