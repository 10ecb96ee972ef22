#!/usr/bin/env bash
# ./train.sh NETWORK CONFIG --data-train FILES --data-test FILES [OPTIONS]; -h explains.
# shellcheck disable=SC2034  # the settings are read in scripts/
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$(readlink -f "$0")")/scripts/common.sh"

dataset='' config='' default_feature='' # the data are those of the user's options
data_train=()
data_val=()
data_test=()
validation_split=0.8 # of the training files, where there is no validation file
workers=2 fetch_step=0.01 in_memory=no

epochs=20 samples='' samples_val='' # the jets in the files
weight_decay=0.01
fine_tuning=yes

train "$@"
