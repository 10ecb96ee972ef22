# shellcheck shell=bash
# Where the data sets are, those that have a script train_DATASET.sh; sourced by these scripts. For
# each data set the first that is set wins: the variable DATADIR_DATASET in your environment,
# env.local.sh (written by get_datasets.py), the embedded sample.

jetzoo_env() {
    local root i script variable value datasets=() given=()
    root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
    for script in "$root"/train_*.sh; do
        script=${script##*/train_}
        datasets+=("${script%.sh}")
    done
    for i in "${!datasets[@]}"; do
        variable=DATADIR_${datasets[i]}
        given[i]=${!variable:-}
    done
    if [[ -f $root/env.local.sh ]]; then
        # shellcheck source=/dev/null
        source "$root/env.local.sh"
    fi
    for i in "${!datasets[@]}"; do
        variable=DATADIR_${datasets[i]}
        value=${given[i]:-${!variable:-}}
        if [[ -z $value && -d $root/data/samples/${datasets[i]} ]]; then
            value=$root/data/samples/${datasets[i]}
        fi
        export "$variable=$value"
    done
}
jetzoo_env
unset -f jetzoo_env
