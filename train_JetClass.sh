#!/usr/bin/env bash
# ./train_JetClass.sh [MODEL] [FEATURES] [OPTIONS]; -h explains.
# shellcheck disable=SC2034  # the settings are read in scripts/
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$(readlink -f "$0")")/scripts/common.sh"

dataset=JetClass config=JetClass default_feature=full
classes=(HToBB HToCC HToGG HToWW2Q1L HToWW4Q TTBar TTBarLep WToQQ ZToQQ ZJetsToNuNu)
for name in "${classes[@]}"; do
    data_train+=("$name:Pythia/train_100M/${name}_*.root")
    data_test+=("$name:Pythia/test_20M/${name}_*.root")
done
data_val=("Pythia/val_5M/*.root")
validation_split=
workers=2 fetch_step=0.01 in_memory=no

epochs=50 samples=10240000 samples_val=1280000
weight_decay=
fine_tuning=no # the weights to fine-tune come from here

train "$@"
