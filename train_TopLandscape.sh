#!/usr/bin/env bash
# ./train_TopLandscape.sh [MODEL] [FEATURES] [OPTIONS]; -h explains.
# shellcheck disable=SC2034  # the settings are read in scripts/
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$(readlink -f "$0")")/scripts/common.sh"

dataset=TopLandscape config=top default_feature=kin
data_train=("train_file*.parquet")
data_val=("val_file*.parquet")
data_test=("test_file*.parquet")
validation_split=
workers=1 fetch_step=1 in_memory=yes

epochs=20 samples=1228800 samples_val=409600
weight_decay=0.01
fine_tuning=yes

train "$@"
