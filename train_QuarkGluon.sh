#!/usr/bin/env bash
# ./train_QuarkGluon.sh [MODEL] [FEATURES] [OPTIONS]; -h explains.
# shellcheck disable=SC2034  # the settings are read in scripts/
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$(readlink -f "$0")")/scripts/common.sh"

dataset=QuarkGluon config=qg default_feature=kinpid
data_train=("train_file_*.parquet")
data_val=("val_file_*.parquet")
data_test=("test_file_*.parquet")
validation_split=0.8889 # of the training files, where there is no validation file
workers=1 fetch_step=1 in_memory=yes

epochs=20 samples=1600000 samples_val=200000
weight_decay=0.01
fine_tuning=yes

train "$@"
